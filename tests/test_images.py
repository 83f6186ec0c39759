"Files become pixels the same way everywhere"
import numpy as np
from PIL import Image
from vision_ft.data.images import Upright

def test_an_image_is_upright(tmp_path):
    wide = Image.fromarray(np.zeros((4, 8, 3), dtype=np.uint8))
    exif = wide.getexif()
    exif[0x112] = 6
    wide.save(tmp_path/'turned.jpg', exif=exif)
    for f in (tmp_path/'turned.jpg', str(tmp_path/'turned.jpg')):
        assert Upright.create(f).size == (4, 8) and type(Upright.create(f)) is Upright
