"Networks that learned from real photographs, on real photographs"
import os, subprocess, sys
import pandas as pd, pytest
from vision_ft.classify.baselines import linear_probe
from vision_ft.classify.settings import TrainSettings
from vision_ft.classify.train import train
from vision_ft.data.tables import read_folder
from vision_ft.data.splits import group_pairs, make_split, split_rows

ARCH = 'tf_efficientnet_lite0'
pytestmark = pytest.mark.filterwarnings('ignore:.*its head has 1000 classes') # as it should

@pytest.fixture(scope='module')
def weights(photos):
    "EfficientNet-Lite0 of ImageNet-1k, beside the data"
    file = photos.parent/'weights'/f'{ARCH}.safetensors'
    if not file.is_file(): pytest.skip(f'{file} is not there: real pretrained weights lie beside the data')
    return file

@pytest.fixture(scope='module')
def rice(photos):
    "(table, groups of copies) of photographs of rice leaves with three diseases"
    if not (photos/'rice').is_dir(): pytest.skip(f'{photos/"rice"} is not there')
    pairs = pd.read_csv(photos/'rice'/'pairs.csv')
    ours = pairs.a.str.startswith('photos/') & pairs.b.str.startswith('photos/') & (pairs.correlation >= .97)
    return read_folder(photos/'rice'/'photos'), group_pairs(pairs.loc[ours, ['a', 'b']].apply(lambda c: c.str.removeprefix('photos/')))

def test_a_probe_of_real_weights_beats_one_of_random_features(rice, weights):
    table, groups = rice
    split, wrong = make_split(table, k=3, seed=1, groups=groups), {}
    for source in (weights, None):
        parts = [split_rows(table, split, fold) for fold in range(3)]
        preds = [linear_probe(TrainSettings(ARCH, size=128, pretrained=source), t, [v], groups)[0].with_targets(dict(zip(v.id, v.label))) for t, v in parts]
        wrong[source] = sum(int(p.wrong.sum()) for p in preds)
    assert wrong[weights] <= .3*len(table) and wrong[weights] <= wrong[None]-10

def test_fine_tuning_real_weights_beats_a_start_from_nothing(rice, weights):
    "`pretrained=PATH` against random weights and against the probe: chapter 20 has the table of three seeds"
    table, groups = rice
    parts = split_rows(table, make_split(table, k=3, seed=1, groups=groups), 1)
    truth = dict(zip(parts[1].id, parts[1].label))
    how = dict(size=96, item='squish 128', epochs=4, effective_bs=16, progress=False, device='cpu')
    error = {p: train(*parts, ARCH, pretrained=p, **how).history.error_rate.iloc[-1] for p in (weights, None)}
    probe = linear_probe(TrainSettings(ARCH, size=96, pretrained=weights), parts[0], [parts[1]], groups)[0].with_targets(truth)
    assert error[weights] < error[None]-.1 and error[weights] < probe.error+.1

SCRIPT = '''
import sys, warnings, torch
from vision_ft.classify.train import train
from vision_ft.data.tables import read_folder
from vision_ft.models import fetch_pretrained, preflight
photos, file = sys.argv[1:]
warnings.simplefilter('ignore')
arch, table = 'tf_efficientnet_lite0', read_folder(photos).groupby('label').head(6)
assert fetch_pretrained(arch).read_bytes() == open(file, 'rb').read()
assert preflight(arch, 'hub', n_out=3)['where'] == 'cached'
def trained(pretrained):
    how = dict(size=64, item='squish 80', epochs=1, pretrained=pretrained, effective_bs=6, progress=False, device='cpu')
    return train(table[::2], table[1::2], arch, **how)
hub, path = (trained(p) for p in ('hub', file))
assert hub.steps == 2
state = path.learn.model.state_dict()
assert all(torch.equal(v, state[k]) for k, v in hub.learn.model.state_dict().items())
print(hub.history.train_loss.tolist() == path.history.train_loss.tolist())
'''

def test_a_training_from_the_hubs_cache_is_one_from_the_file(rice, weights, photos, tmp_path):
    "`pretrained='hub'` finds what a download leaves behind, without network, and trains from it like from a path"
    repo = tmp_path/'hub'/f'models--timm--{ARCH}.in1k'
    (repo/'snapshots'/'0a1b2c').mkdir(parents=True)
    (repo/'refs').mkdir()
    (repo/'refs'/'main').write_text('0a1b2c')
    (repo/'snapshots'/'0a1b2c'/'model.safetensors').symlink_to(weights.resolve())
    env = {k: v for k, v in os.environ.items() if not k.startswith('HF_')} | dict(HF_HOME=str(tmp_path), HF_HUB_OFFLINE='1')
    command = [sys.executable, '-c', SCRIPT, str(photos/'rice'/'photos'), str(weights)]
    got = subprocess.run(command, capture_output=True, text=True, env=env, cwd=tmp_path)
    assert got.stdout.strip() == 'True', got.stderr[-2000:]
