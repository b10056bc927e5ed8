"""Quantization-aware training of an ONNX graph as it stands: its nodes run in torch with Q/DQ's rounding in place.

Neither ModelOpt nor torchao is used. Both place quantizers on torch modules or ATen nodes, before batch normalisation
is folded, and know nothing of the residual rule, thin layers or the head; ModelOpt 0.47 exports through the TorchScript
exporter alone, with batch normalisation left between convolution and activation, and torchao 0.18's own quantizers
write uint8 activations. What is trained here is the very graph that ranges were measured on, with the same `placement`
and the same writer of Q/DQ nodes, so that it also works on a classifier of which only the ONNX file is left.
"""
