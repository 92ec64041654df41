"""Networks of image recognition that timm does not have. Importing the file of one lets timm make it by its name."""
