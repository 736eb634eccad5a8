"""Names of COCO's classes, for the detectors of torchvision.

Those have an output for each of COCO's numbers from 0 to 90, of which 80 are in use:
https://cocodataset.org, `categories` of instances_val2017.json.
"""

_NAMES = (
  "background,person,bicycle,car,motorcycle,airplane,bus,train,truck,boat,"
  "traffic light,fire hydrant,,stop sign,parking meter,bench,bird,cat,dog,horse,sheep,"
  "cow,elephant,bear,zebra,giraffe,,backpack,umbrella,,,handbag,tie,suitcase,frisbee,"
  "skis,snowboard,sports ball,kite,baseball bat,baseball glove,skateboard,surfboard,"
  "tennis racket,bottle,,wine glass,cup,fork,knife,spoon,bowl,banana,apple,sandwich,"
  "orange,broccoli,carrot,hot dog,pizza,donut,cake,chair,couch,potted plant,bed,,"
  "dining table,,,toilet,,tv,laptop,mouse,remote,keyboard,cell phone,microwave,oven,"
  "toaster,sink,refrigerator,,book,clock,vase,scissors,teddy bear,hair drier,toothbrush"
)


def class_names() -> tuple[str, ...]:
  """Returns the names by COCO's numbers, such as "class 12" for an unused one."""
  names = _NAMES.split(",")
  return tuple(name or f"class {number}" for number, name in enumerate(names))
