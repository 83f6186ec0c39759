"Settings, tables, first loss, restarts and the folder of a training"
import errno, warnings
import numpy as np, pandas as pd, pytest, torch
from dataclasses import replace
from fastai.callback.fp16 import MixedPrecision
from PIL import Image
from vision_ft.classify import train as T
from vision_ft.classify.predict import load_run
from vision_ft.classify.settings import TrainSettings
from vision_ft.core import DataError, SettingsError, VisionFTError, asset
from vision_ft.data import images
from vision_ft.data.tables import read_folder
from vision_ft.models import make_model, save_checkpoint
from vision_ft.runs import Run
from vision_ft.samples import digits

FAST = dict(size=32, item='squish 32', effective_bs=16, epochs=1, lr=.003, flip=False, device='cpu', progress=False)

@pytest.fixture(scope='module')
def tables(tmp_path_factory):
    "Training and validation rows: 4 and 2 images of each digit"
    t = read_folder(digits(tmp_path_factory.mktemp('digits')/'d')/'train_images').groupby('label').head(6)
    last = t.groupby('label').cumcount() > 3
    return t[~last].reset_index(drop=True), t[last].reset_index(drop=True)

def fit(tables, arch='tiny_convnext', **kwargs): return T.train(*tables, arch, **{**FAST, **kwargs})
def same(a, b): return all(torch.equal(x, y) for x, y in zip(a.learn.model.state_dict().values(), b.learn.model.state_dict().values()))

def said(words, f):
    "Warnings with these words while `f` runs, and what it returns"
    with warnings.catch_warnings(record=True) as w:
        warnings.simplefilter('always')
        result = f()
    return [str(o.message) for o in w if words in str(o.message)], result

# --- settings

def test_a_field_beside_settings_counts_and_an_unknown_one_is_refused(tables):
    s = TrainSettings('tiny_convnext', size=32, item='squish 32', effective_bs=16, flip=False)
    assert len(T.train(*tables, s, epochs=2, device='cpu', progress=False).history) == 2
    with pytest.raises(SettingsError, match='did you mean one of pretrained') as e: fit(tables, pretraind='tiny')
    assert 'model_args' in str(e.value)

# --- tables

@pytest.mark.parametrize('change,words', [
    (lambda t, v: (t.drop(columns='path'), v), 'no column path'), (lambda t, v: (t, v.path.tolist()), 'a list is no table'), (lambda t, v: (t, v[:0]), 'validation table has no rows'),
    (lambda t, v: (t.assign(label=None), v), '40 rows of the training table have no label'), (lambda t, v: (t[:1], v), 'would learn nothing else'),
    (lambda t, v: (t, v.assign(path='nowhere.png')), '20 images of the validation table are not there'),
    (lambda t, v: (t, v.assign(label='x')), 'not among the training labels'), (lambda t, v: (t, pd.concat([v, t[:1]])), 'both in training and in validation')])
def test_tables_that_cannot_be_trained_on(tables, change, words):
    with pytest.raises(DataError, match=words): fit(change(*tables))

def test_few_rows_and_labels_that_are_numbers(tables):
    train, valid = (t.assign(label=t.label.astype(int)) for t in tables)
    assert len(fit((train, valid[:1])).history) == 1
    r = fit((train[:1], valid[:1]), vocab=range(10))
    assert r.steps == 1 and list(r.learn.dls.vocab) == [str(i) for i in range(10)]

# --- the first loss

@pytest.mark.parametrize('arch,pretrained', [('tiny_convnext', 'tiny'), ('tiny_vit', 'tiny'), ('tiny_swin', None), ('mobilenetv4_conv_small', None), ('mnasnet_small', None)])
def test_a_new_head_starts_without_a_word(tables, arch, pretrained):
    assert not said('the first loss', lambda: fit(tables, arch, pretrained=pretrained, effective_bs=8))[0]

def test_a_head_of_other_classes_is_said_and_its_fix_works(tables, tmp_path):
    from safetensors.torch import load_file, save_file
    file = asset('weights', 'tiny_convnext.safetensors') # of ten classes, but others
    warned, _ = said('the first loss', lambda: fit(tables, pretrained=file))
    assert len(warned) == 1 and 'Fix: ' in warned[0] and 'guessing is 2.30' in warned[0]
    head = make_model('tiny_convnext', 10).pretrained_cfg['classifier']
    save_file({k: v for k, v in load_file(file).items() if not k.startswith(head)}, tmp_path/'headless.safetensors')
    assert not said('the first loss', lambda: fit(tables, pretrained=tmp_path/'headless.safetensors'))[0]

def test_a_head_of_these_classes_goes_on_without_a_word(tables, tmp_path):
    own = save_checkpoint(fit(tables, pretrained='tiny', epochs=2).learn.model, tmp_path/'own.safetensors')
    assert not said('the first loss', lambda: fit(tables, pretrained=own))[0]

def test_looking_at_the_first_loss_changes_nothing(tables, monkeypatch):
    looked = fit(tables, 'resnet10t', micro_bs=8) # batch norm, shuffled batches, random crops
    monkeypatch.setattr(T.FirstLoss, 'before_step', lambda self: None)
    assert same(looked, fit(tables, 'resnet10t', micro_bs=8))

# --- restarts

class CPUAmp(MixedPrecision):
    "fastai's mixed precision on a CPU"
    name = 'mixed_precision'
    def before_fit(self):
        self.autocast = torch.amp.autocast('cpu', dtype=torch.bfloat16)
        self.learn.scaler, self.scales = torch.amp.GradScaler('cpu', enabled=False), []

def small_device(monkeypatch, most, error=torch.OutOfMemoryError('CUDA out of memory')):
    "Learners in mixed precision, of which one that trains on more than `most` images raises the error in its head"
    learner = T._learner
    def small(*args, **kwargs):
        learn = learner(*args, **kwargs)
        learn.add_cb(CPUAmp())
        def full(head, x):
            if learn.model.training and len(x[0]) > most: raise error
        learn.model.head.register_forward_pre_hook(full)
        return learn
    monkeypatch.setattr(T, '_learner', small)

def test_a_training_that_ran_out_of_memory_is_one_that_began_smaller(tables, monkeypatch):
    with monkeypatch.context() as m:
        small_device(m, 8)
        warned, tight = said('out of memory', lambda: fit(tables, epochs=3))
        assert not torch.is_autocast_enabled('cpu')
    small_device(monkeypatch, 99)
    began = fit(tables, epochs=3, micro_bs=8)
    assert len(warned) == 1 and tight.micro_bs == 8 and same(tight, began)
    assert tight.history.valid_loss.tolist() == began.history.valid_loss.tolist()

def test_an_interrupted_training_leaves_no_autocast(tables, monkeypatch):
    with monkeypatch.context() as m:
        small_device(m, 0, KeyboardInterrupt())
        with pytest.raises(KeyboardInterrupt): fit(tables)
    assert not torch.is_autocast_enabled('cpu')

def test_when_nothing_fits_one_sentence_says_so(tables, monkeypatch):
    small_device(monkeypatch, 0)
    with warnings.catch_warnings(), pytest.raises(SettingsError, match='out of memory with one image') as e:
        warnings.simplefilter('ignore')
        fit(tables)
    assert 'Fix: ' in str(e.value)

def test_a_plan_that_finds_no_room_says_what_train_can_do(tables, monkeypatch):
    plan = T.plan_micro_bs
    monkeypatch.setattr(T, 'plan_micro_bs', lambda *a, **kw: plan(*a, **{**kw, 'budget': 5}))
    with pytest.raises(SettingsError, match='smaller size or model') as e: fit(tables, micro_bs='auto')
    assert 'frozen' not in str(e.value) and 'checkpointing' not in str(e.value)

# --- the folder

@pytest.mark.parametrize('what', ['weights', 'history'])
def test_a_full_disk_is_said_and_the_run_can_be_done_again(tables, tmp_path, monkeypatch, what):
    def full(*a, **kw): raise OSError(errno.ENOSPC, 'No space left on device')
    with monkeypatch.context() as m:
        if what == 'weights': m.setattr('safetensors.torch.serialize_file', full)
        else: m.setattr(pd.DataFrame, 'to_csv', full)
        with pytest.raises(VisionFTError, match='Fix: '): fit(tables, run=tmp_path/'r')
    assert Run(tmp_path/'r').status == {'train': 'failed'}
    fit(tables, run=tmp_path/'r')
    assert Run(tmp_path/'r').status == {'train': 'done'}

def test_a_finished_run_is_read_whatever_the_number_of_workers(tables, tmp_path, monkeypatch):
    done = fit(tables, run=tmp_path/'r', pretrained='tiny', finetune=False, micro_bs=5)
    def never(*a): raise AssertionError('trained again')
    monkeypatch.setattr(T, '_fit', never)
    for workers in (None, 1, 2):
        again = fit(tables, run=tmp_path/'r', pretrained='tiny', finetune=False, micro_bs=5, num_workers=workers)
        assert same(done, again) and again.micro_bs == 5
    assert same(done, T.load_trained(tmp_path/'r', *tables, 'cpu'))

def test_a_record_is_made_once(tables, tmp_path, monkeypatch):
    s, calls = TrainSettings('tiny_convnext', **{k: v for k, v in FAST.items() if k not in ('device', 'progress')}), []
    data_id = T.data_id
    monkeypatch.setattr(T, 'data_id', lambda *t: calls.append(1) or data_id(*t))
    record = T.training_record(*tables, s, 'cpu')
    for _ in range(2): T.train(*tables, s, run=tmp_path/'r', device='cpu', progress=False, record=record)
    assert len(calls) == 1 and Run(tmp_path/'r').info['stages']['train']['settings']['data'] == record['data']

# --- the cache

def test_a_cache_changes_nothing_but_time(tables, tmp_path):
    plain = fit(tables, item='crop 48', run=tmp_path/'plain', micro_bs=8)
    for name in ('fills', 'reads'):
        cached = fit(tables, item='crop 48', run=tmp_path/name, micro_bs=8, cache=tmp_path/'cache')
        assert same(plain, cached) and plain.history.valid_loss.tolist() == cached.history.valid_loss.tolist()
    prints = {Run(tmp_path/n).info['stages']['train']['fingerprint'] for n in ('plain', 'fills', 'reads')}
    assert len(prints) == 1 and len(list(tmp_path.glob('cache/*/*'))) == 60

def test_a_training_that_only_predicts_needs_no_table_and_writes_nothing(tables, tmp_path, monkeypatch):
    done = fit(tables, run=tmp_path/'r')
    there = sorted(tmp_path.rglob('*'))
    monkeypatch.setattr(Image.Image, 'save', lambda *a, **kw: pytest.fail('an image was written'))
    learn = T.load_trained(tmp_path/'r', device='cpu').learn
    paths = tables[1].path.tolist()
    with learn.no_bar(), done.learn.no_bar():
        got, want = (l.get_preds(dl=l.dls.test_dl(paths))[0] for l in (learn, done.learn))
    assert torch.equal(got, want) and list(learn.dls.vocab) == list(done.learn.dls.vocab) and sorted(tmp_path.rglob('*')) == there

def test_training_validation_prediction_and_views_read_through_the_same_code(tables, tmp_path, monkeypatch):
    "Each image once, at the same size, by one function; so a prediction is what validation saw, to the bit"
    read_pixels, read = images.read_pixels, []
    monkeypatch.setattr(images, 'read_pixels', lambda *how: read.append(how) or read_pixels(*how))
    learn, run = fit(tables, item='squish 96', run=tmp_path/'r').learn, load_run(tmp_path/'r', device='cpu')
    both, valid = [sorted(pd.concat(t).path) for t in (tables, tables[1:])]
    def seen(f):
        read.clear()
        result = f()
        assert {(method, size) for _, method, size in read} == {('squish', (48, 48))}
        return sorted(str(path) for path, *_ in read), result
    assert seen(lambda: [b for dl in (learn.dls.train, learn.dls.valid) for b in dl])[0] == both
    with learn.no_bar(): files, (want, _) = seen(learn.get_preds)
    assert files == valid
    for tta in (False, True):
        files, preds = seen(lambda: run.predict(tables[1], tta=tta, progress=False))
        assert files == valid and np.array_equal(preds.probs, want.numpy()) == (not tta)

def test_an_image_that_cannot_be_read_is_named(tables, tmp_path):
    train, valid = (t.copy() for t in tables)
    (tmp_path/'broken.jpg').write_bytes(b'not an image')
    train.loc[3, 'path'] = str(tmp_path/'broken.jpg')
    with pytest.raises(DataError, match='broken.jpg cannot be read(.|\n)*Fix: '): fit((train, valid))
