"""PyTorch training: frozen encoder, channel dropout, segmentor. Imports torch and MONAI."""
