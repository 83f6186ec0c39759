"A finished run on new images: the run's own numbers, bit for bit, from its folder alone"
import numpy as np, pandas as pd, pytest
from pathlib import Path
from vision_ft.classify import predict as P
from vision_ft.classify.compete import compete
from vision_ft.core import DataError, SettingsError
from vision_ft.samples import digits

@pytest.fixture(scope='module')
def done(tmp_path_factory):
    "A run whose data are gone, a copy of its test images, and its result"
    home = tmp_path_factory.mktemp('predict')
    data = digits(home/'digits')
    result = compete(data, home/'run', epochs=1, flip=False, progress=False, device='cpu', micro_bs=24)
    new = (data/'test_images').rename(home/'new')
    (data/'train_images').rename(home/'away')
    return home, new, result

def test_the_numbers_are_those_of_the_run(done):
    home, new, result = done
    p = P.predict(home/'run', new, tta=True, device='cpu', progress=False)
    assert np.array_equal(p.align(result.preds).probs, result.preds.probs)
    own = result.plan.runs[0].preds('test')
    one = P.predict(home/'run', new, model=own.name, device='cpu', progress=False)
    assert np.array_equal(one.align(own).probs, own.probs)
    alone = P.predict(home/'run'/'runs'/own.name, new, device='cpu', progress=False)
    assert np.array_equal(alone.probs, one.probs)

def test_in_parts_the_numbers_stay(done):
    home, new, result = done
    run = P.load_run(home/'run', device='cpu')
    P.predict_csv(run, new, home/'parts.csv', tta=True, probs=True, at_once=1)
    t = pd.read_csv(home/'parts.csv').set_index('file')
    assert list(t.columns[4:]) == run.vocab and len(t) == 360 and t.error.isna().all()
    expect = result.preds.take(t.index.tolist())
    assert (t.label.astype(str) == expect.labels).all() and np.allclose(t[run.vocab], expect.probs, atol=1e-6)
    assert np.allclose(t.confidence, expect.probs.max(1), atol=1e-6) and (t.runner_up != t.label).all()

def test_images_in_every_form(done, tmp_path):
    home, new, _ = done
    run = P.load_run(home/'run', model='vit', device='cpu')
    files = sorted(new.iterdir())[:2]
    for images in (files, [str(f) for f in files], tuple(files)):
        assert len(P.predict(run, images, progress=False)) == 2
    assert len(P.predict(run, files[0], progress=False)) == 1
    assert len(P.predict(run, str(new/'*.jpg'), progress=False)) == 360
    for bad, words in ((str(new/'*.gif'), 'no file is named like'), (tmp_path/'no.jpg', 'do not exist'), (tmp_path, 'holds no images')):
        with pytest.raises(DataError, match=words): P.predict(run, bad, progress=False)

def test_unreadable_files_are_listed_and_a_refusal_writes_nothing(done, tmp_path):
    home, new, _ = done
    for f in sorted(new.iterdir())[:2]: (tmp_path/f.name).write_bytes(f.read_bytes())
    (tmp_path/'broken.jpg').write_bytes(b'no image')
    out = tmp_path/'out'/'labels.csv'
    assert P.predict_csv(home/'run', tmp_path, out, model='vit', device='cpu') == (2, 1)
    t = pd.read_csv(out).set_index('file')
    assert pd.isna(t.label['broken.jpg']) and 'identify' in t.error['broken.jpg']
    with pytest.raises(DataError, match='no finished run'): P.predict_csv(tmp_path, new, tmp_path/'x.csv')
    with pytest.raises(SettingsError, match='model of this run'): P.predict_csv(home/'run', new, tmp_path/'x.csv', model='vitt')
    assert not (tmp_path/'x.csv').exists()
