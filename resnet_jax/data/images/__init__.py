"""One image at a time, on the host: decoding, cropping, augmentation."""
