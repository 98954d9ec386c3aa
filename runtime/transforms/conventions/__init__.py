"""One module for each convention of transform files; `runtime.transforms.formats` lists them."""
