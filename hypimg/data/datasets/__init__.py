"""The data sets, one file each; `configs/dataset/` names them with their constants."""
