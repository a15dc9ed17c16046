# Res2Net-50 v1b 26w 4s on ImageNet-1k. The others differ in the network.
_base_ = ['./_base_/classifier.py', './_base_/imagenet.py', './_base_/schedule_100e.py']
