"Tests run offline, on one thread each, and repeat exactly"
import os
from pathlib import Path
import pytest
from hypothesis import settings

for k, v in dict(OMP_NUM_THREADS='1', HF_HUB_OFFLINE='1', YOLO_OFFLINE='true', MPLBACKEND='Agg').items(): os.environ.setdefault(k, v)
settings.register_profile('repeatable', deadline=None, derandomize=True)
settings.load_profile('repeatable')

@pytest.fixture(scope='session')
def root():
    "The top of the repository"
    return Path(__file__).resolve().parent.parent

@pytest.fixture(scope='session')
def photos():
    "The folder of real data sets, where there is one"
    if not (folder := os.environ.get('VISION_FT_DATA')): pytest.skip('VISION_FT_DATA names no folder of real data')
    return Path(folder)
