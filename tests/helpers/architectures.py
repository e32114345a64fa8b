"""What tests of every network have to know: the smallest image it takes, and its norm."""

SMALLEST = {"convnet4": 16, "convnet4_bn": 16, "vgg11": 32, "vgg11_bn": 32, "resnet18_in": 9}
WITH_BATCH_NORM = {
    "convnet1_bn",
    "convnet2_bn",
    "convnet3_bn",
    "convnet3_w32_bn",
    "convnet4_bn",
    "resnet9",
    "resnet9_w96",
    "resnet18",
    "resnet50",
    "resnext50",
    "resnet32",
    "resnet32_w16",
    "wrn16_2",
    "mobilenet_v2",
    "shufflenet_v2_05",
    "vgg11_bn",
}
