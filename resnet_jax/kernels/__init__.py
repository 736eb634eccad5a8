"""How convolution and batch norm are computed on each kind of device."""
