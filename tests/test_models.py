"What the chapter on models can't show in passing: foreign files, no network, no memory, heads of many families."
import math, re, warnings
from pathlib import Path
import numpy as np, pandas as pd, psutil, pytest, timm, torch
import torch.nn.functional as F
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.optim.swa_utils import AveragedModel
from vision_ft import models
from vision_ft.core import SettingsError, PretrainedError, asset
from vision_ft.models import (TINY, body_head, clean_pretrained, family, fetch_pretrained, make_model,
                              preflight, save_checkpoint, today)

def test_every_retired_name_leads_to_a_model_with_that_tag():
    retired = list(timm.models.get_deprecated_models())
    assert {today(o) for o in retired} <= set(timm.list_models(include_tags=True))

def test_unknown_name_lists_near_ones():
    with pytest.raises(SettingsError, match='vit_large_patch16_224'): today('vit_large_patch16_244')
    with pytest.raises(SettingsError): make_model('tiny_vit.some_tag', 2)

@pytest.mark.parametrize('arch', [*TINY, 'test_vit', 'test_convnext2', 'test_resnet'])
def test_weights_come_back_and_the_body_survives_another_head(arch, tmp_path):
    a = make_model(arch, 4)
    f = save_checkpoint(a, tmp_path/'w.safetensors', {'epochs': 3})
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        b = make_model(arch, 4, pretrained=str(f))
    with pytest.warns(UserWarning, match='its head has 4 classes, the model needs 7'):
        c = make_model(arch, 7, pretrained=f)
    for (k, u), v in zip(a.state_dict().items(), b.state_dict().values()): assert torch.equal(u, v), k
    for u, v in zip(*(body_head(m)[0] for m in (a, c))): assert torch.equal(u, v)
    assert [len(g) for g in body_head(c)][1] == 2

def test_half_precision_file_of_a_body_alone(tmp_path):
    a = make_model('tiny_vit', 4)
    save_file({k: v.half() for k, v in a.state_dict().items() if not k.startswith('head.')}, tmp_path/'body.safetensors')
    with pytest.warns(UserWarning, match='its head is missing'):
        b = make_model('tiny_vit', 9, pretrained=tmp_path/'body.safetensors', size=64)
    assert torch.equal(b.patch_embed.proj.weight, a.patch_embed.proj.weight.half().float())

def test_nothing_but_the_head_may_be_missing(tmp_path):
    f = save_checkpoint(make_model('tiny_convnext', 4), tmp_path/'w.safetensors')
    sd = load_file(f)
    lost = {k: v for k, v in sd.items() if not k.startswith('stages.3')}
    save_file(lost, tmp_path/'lost.safetensors')
    save_file(sd | {'stem.0.weight': torch.zeros(8, 3, 2, 2)}, tmp_path/'shape.safetensors')
    with pytest.raises(PretrainedError, match=rf'{len(sd)-len(lost)} missing, such as stages.3'):
        make_model('tiny_convnext', 4, pretrained=tmp_path/'lost.safetensors')
    with pytest.raises(PretrainedError, match=r'1 of another shape, such as stem.0.weight \(8, 3, 2, 2\)'):
        make_model('tiny_convnext', 4, pretrained=tmp_path/'shape.safetensors')

@pytest.mark.parametrize('name', ['half.safetensors', 'half.pth', 'list.pth', 'w.npz', 'none.pth'])
def test_unreadable_files_are_weights_errors(name, tmp_path):
    f = tmp_path/name
    if name.startswith('half'): f.write_bytes(b'\x08\x00\x00\x00 half a file')
    if name == 'list.pth': torch.save([1, 2], f)
    if name == 'w.npz': f.touch()
    with pytest.raises(PretrainedError): make_model('tiny_vit', 4, pretrained=f)
    with pytest.raises(PretrainedError): preflight('tiny_vit', pretrained=f)

class Attack:
    def __reduce__(self): return (print, ('this must never run',))

def test_a_pickle_runs_no_code(tmp_path, capsys):
    torch.save({'model': Attack()}, tmp_path/'w.pth')
    with pytest.raises(PretrainedError, match='holds tensors only'):
        make_model('tiny_vit', 4, pretrained=tmp_path/'w.pth')
    assert 'never' not in capsys.readouterr().out

def test_no_network_is_said_with_both_fixes(monkeypatch, tmp_path):
    import huggingface_hub
    def down(self, *args, timeout, **kwargs):
        assert timeout <= 10
        raise ConnectionError('no route to host')
    monkeypatch.setattr(huggingface_hub.HfApi, 'model_info', down)
    monkeypatch.setattr(huggingface_hub.constants, 'HF_HUB_CACHE', str(tmp_path))
    for f in (fetch_pretrained, lambda a: make_model(a, 2, pretrained='hub')):
        with pytest.raises(PretrainedError, match='(?s)no route to host.*HF_HOME.*pretrained=PATH'): f('test_vit')
    monkeypatch.setattr(huggingface_hub.constants, 'HF_HUB_OFFLINE', False)
    assert preflight('test_vit', 'hub')['where'] == 'to download'
    monkeypatch.setattr(huggingface_hub.constants, 'HF_HUB_OFFLINE', True)
    with pytest.raises(PretrainedError, match='not in the cache'): preflight('test_vit', 'hub')

def test_preflight_allocates_no_weights():
    preflight('tiny_vit')
    before = psutil.Process().memory_info().rss
    assert preflight('vit_large_patch16_224', size=384)['params_m'] > 300
    assert psutil.Process().memory_info().rss-before < 100e6 # the weights alone are 1.2 GB

def test_families():
    assert [family(a) for a in TINY] == ['convnext', 'vit', 'swinv2']

def first_loss(model, n_out=3):
    "Of random images in the first step of a training"
    torch.manual_seed(1)
    images, labels = torch.randn(12, 3, 96, 96), torch.arange(12) % n_out
    with torch.no_grad(): return F.cross_entropy(model.train()(images), labels).item()

START_LARGE = ['mobilenetv4_conv_small', 'mnasnet_small', 'tf_efficientnet_lite0', 'efficientnet_b0', 'tinynet_e',
               'hardcorenas_a', 'lcnet_050', 'fbnetc_100', 'semnasnet_075', 'mixnet_s', 'rexnet_100', 'dla46_c',
               'inception_v3']
START_RIGHT = ['resnet18', 'regnetx_002', 'convnext_atto', 'ghostnet_050', 'tiny_vit', 'tiny_swin']

@pytest.mark.parametrize('arch', [*START_LARGE, *START_RIGHT])
def test_the_first_loss_is_that_of_a_guess(arch):
    torch.manual_seed(0)
    assert abs(first_loss(make_model(arch, 3, size=96))-math.log(3)) < .3

@pytest.mark.parametrize('arch', START_RIGHT)
def test_heads_that_start_right_stay_as_timm_makes_them(arch):
    name, small = TINY.get(arch, (arch, {}))
    torch.manual_seed(0)
    ours = make_model(arch, 3).state_dict()
    torch.manual_seed(0)
    timms = timm.create_model(name, num_classes=3, **small).state_dict()
    for k, v in timms.items(): assert torch.equal(v, ours[k]), k

def test_a_head_that_no_file_brings_starts_small(tmp_path, monkeypatch):
    three, thousand = (timm.create_model('lcnet_035', num_classes=n) for n in (3, 1000))
    files = [save_checkpoint(m, tmp_path/f'{m.num_classes}.safetensors') for m in (three, thousand)]
    width = lambda m: m.classifier.weight.std().item()
    assert width(three) > .2 # what timm makes
    assert torch.equal(make_model('lcnet_035', 3, pretrained=files[0]).classifier.weight, three.classifier.weight) # a trained model
    with pytest.warns(UserWarning, match='1000 classes, the model needs 3'):
        assert width(make_model('lcnet_035', 3, pretrained=files[1])) < .05
    monkeypatch.setattr(models, 'fetch_pretrained', lambda arch: files[0])
    hub = make_model('lcnet_035', 3, pretrained='hub')
    assert width(hub) < .05 and torch.equal(hub.conv_stem.weight, three.conv_stem.weight)

@pytest.mark.parametrize('arch', TINY)
def test_ten_other_classes_get_another_head(arch):
    torch.manual_seed(0)
    fresh = make_model(arch, 10, pretrained='tiny')
    file = asset('weights', f'{arch}.safetensors')
    torch.manual_seed(0)
    kept = make_model(arch, 10, pretrained=file)
    name = kept.pretrained_cfg['classifier']+'.weight'
    assert torch.equal(kept.state_dict()[name], load_file(file)[name].float())
    kept.reset_classifier(10) # the numbers that timm would draw
    for k, v in kept.state_dict().items(): assert torch.equal(v, fresh.state_dict()[k]), k

def test_real_weights_start_small(photos):
    file = photos.parent/'weights'/'tf_efficientnet_lite0.safetensors'
    if not file.exists(): pytest.skip(f'{file} is missing')
    for n in (3, 150):
        with pytest.warns(UserWarning, match=f'1000 classes, the model needs {n}'):
            model = make_model('tf_efficientnet_lite0', n, pretrained=file)
        for k, v in load_file(file).items():
            if not k.startswith('classifier.'): assert torch.equal(model.state_dict()[k], v), k
        assert abs(first_loss(model, n)-math.log(n)) < .3

def test_a_model_of_fake_tensors_has_no_values_to_look_at():
    with FakeTensorMode(): assert make_model('lcnet_035', 3).classifier.out_features == 3
    with torch.device('meta'): assert make_model('lcnet_035', 3).classifier.weight.is_meta

def test_a_head_of_many_classes_starts_small_too():
    assert make_model('tf_efficientnet_lite0', 150).classifier.weight.std() < .02 # .047 as timm makes it

@pytest.mark.parametrize('empty', [None, float('nan'), np.float32('nan'), pd.NA, pd.NaT, '', ' ', 'None', 'nan'])
def test_an_empty_cell_means_no_weights(empty):
    assert clean_pretrained(empty) is None
    assert preflight('tiny_vit', empty)['where'] == 'none'
    make_model('tiny_vit', 2, pretrained=empty)
    assert clean_pretrained('hub') == 'hub'

WRAPPED = {
    'model.': lambda sd: {f'model.{k}': v for k, v in sd.items()},
    'net.': lambda sd: dict(net={f'net.{k}': v for k, v in sd.items()}),
    'model.backbone.': lambda sd: dict(state_dict={f'model.backbone.{k}': v for k, v in sd.items()}, epoch=3),
    'module._orig_mod.': lambda sd: dict(model_state_dict={f'module._orig_mod.{k}': v for k, v in sd.items()}),
    "model_state_dict'": lambda sd: dict(model_state_dict=sd, optimizer_state_dict=dict(state={0: dict(step=torch.ones(1))})),
    "model_state'": lambda sd: dict(model_state=sd, optimizer_state=dict(state={})),
    'checkpoint → model': lambda sd: dict(checkpoint=dict(model=sd, optimizer={}), epoch=3),
    'ema → module': lambda sd: dict(ema=dict(module=sd, updates=7)),
    'state_dict_ema': lambda sd: dict(state_dict_ema=sd, state_dict={k: torch.zeros_like(v) for k, v in sd.items()}),
}

@pytest.mark.parametrize('said', WRAPPED)
@pytest.mark.parametrize('arch', ['tiny_convnext', 'test_vit'])
def test_what_is_wrapped_around_a_model_is_taken_off_and_said(arch, said, tmp_path):
    a = make_model(arch, 4)
    torch.save(WRAPPED[said](a.state_dict()), tmp_path/'w.pth')
    with pytest.warns(UserWarning) as told: b = make_model(arch, 4, pretrained=tmp_path/'w.pth')
    assert len(told) == 1 and said in str(told[0].message) and 'w.pth' in str(told[0].message)
    for k, v in a.state_dict().items(): assert torch.equal(v, b.state_dict()[k]), k
    assert preflight(arch, tmp_path/'w.pth', n_out=4)['where'] == 'file'

def test_averaged_weights_and_a_head_of_ones_own(tmp_path):
    a = make_model('tiny_vit', 4)
    torch.save(AveragedModel(a).state_dict(), tmp_path/'swa.pth')
    with pytest.warns(UserWarning, match=r"'module\.'.*1 without it left out, such as n_averaged"):
        b = make_model('tiny_vit', 4, pretrained=tmp_path/'swa.pth')
    assert torch.equal(b.head.weight, a.head.weight)
    own = {f'backbone.{k}': v for k, v in a.state_dict().items() if not k.startswith('head.')}
    own['head.weight'] = torch.zeros(4, 128)
    torch.save(own, tmp_path/'own.pth')
    with pytest.warns(UserWarning, match=r"'backbone\.'.*such as head.weight.*its head is missing"):
        c = make_model('tiny_vit', 4, pretrained=tmp_path/'own.pth')
    for u, v in zip(body_head(a)[0], body_head(c)[0]): assert torch.equal(u, v)
    del own['backbone.blocks.0.norm1.weight']
    torch.save(own, tmp_path/'lost.pth')
    with pytest.raises(PretrainedError, match='1 missing, such as blocks.0.norm1.weight'):
        make_model('tiny_vit', 4, pretrained=tmp_path/'lost.pth')

def test_a_prefix_that_is_the_models_own_stays(tmp_path):
    a = make_model('densenet121', 4)
    save_file({k: v for k, v in a.state_dict().items() if k.startswith('features.')}, tmp_path/'body.safetensors')
    with pytest.warns(UserWarning, match='^body.safetensors: its head is missing'):
        b = make_model('densenet121', 4, pretrained=tmp_path/'body.safetensors')
    assert torch.equal(b.features.conv0.weight, a.features.conv0.weight)

@pytest.mark.parametrize('name', ['w.safetensors', 'w.pth', 'w.bin'])
def test_a_pointer_of_git_lfs_is_named(name, tmp_path):
    (tmp_path/name).write_text('version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 1048444\n')
    with pytest.raises(PretrainedError, match='Git-LFS pointer(?s:.)*Fix: run `git lfs pull`'):
        make_model('tiny_vit', 4, pretrained=tmp_path/name)

def test_a_full_disk_is_said_and_leaves_nothing(monkeypatch, tmp_path):
    def full(tensors, path, words):
        path.write_bytes(b'half')
        raise SafetensorError('Error while serializing: I/O error: No space left on device (os error 28)')
    monkeypatch.setattr(models, 'save_file', full)
    with pytest.raises(SettingsError, match='w.safetensors.*full(?s:.)*Fix: '):
        save_checkpoint(make_model('tiny_vit', 4), tmp_path/'w.safetensors')
    assert not list(tmp_path.iterdir())

# --- files of other projects

def test_a_file_in_the_home_folder(tmp_path, monkeypatch):
    monkeypatch.setenv('HOME', str(tmp_path))
    a = make_model('tiny_vit', 4)
    save_checkpoint(a, tmp_path/'w'/'f.safetensors')
    assert clean_pretrained('~/w/f.safetensors') == str(tmp_path/'w'/'f.safetensors') # for the hash in run.json too
    for path in ('~/w/f.safetensors', Path('~/w/f.safetensors')):
        assert torch.equal(make_model('tiny_vit', 4, pretrained=path).head.weight, a.head.weight)
        assert preflight('tiny_vit', path, n_out=4)['where'] == 'file'
    with pytest.raises(PretrainedError, match='is not a file'): make_model('tiny_vit', 4, pretrained='~nobody-of-this-name/w.pth')

def test_a_checkpoint_of_lightning(tmp_path):
    a = make_model('tiny_vit', 4)
    weights = {f'model.{k}': v for k, v in a.state_dict().items()} | {'loss.weight': torch.ones(4)}
    torch.save({'epoch': 3, 'global_step': 99, 'pytorch-lightning_version': '2.5.0', 'state_dict': weights, 'loops': {},
                'callbacks': {}, 'optimizer_states': [], 'lr_schedulers': [], 'hyper_parameters': dict(lr=.1)}, tmp_path/'last.ckpt')
    with pytest.warns(UserWarning, match="last.ckpt: the weights are those under 'state_dict'; the prefix 'model.'"):
        b = make_model('tiny_vit', 4, pretrained=tmp_path/'last.ckpt')
    for k, v in a.state_dict().items(): assert torch.equal(v, b.state_dict()[k]), k

def test_what_cannot_be_unwrapped_says_its_keys_and_the_fix_works(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    a = make_model('tiny_vit', 4)
    torch.save(dict(teacher=a.state_dict(), student=a.state_dict(), epoch=3), 'two.pth')
    with pytest.raises(PretrainedError, match='does not fit(?s:.)*keys of the file are teacher, student, epoch') as e:
        make_model('tiny_vit', 4, pretrained=tmp_path/'two.pth')
    exec(re.search(r'torch\.save\(.*\)', str(e.value))[0], dict(torch=torch))
    assert torch.equal(make_model('tiny_vit', 4, pretrained='weights.pth').head.weight, a.head.weight)
    torch.save(dict(model=make_model('test_resnet', 4).state_dict(), optimizer={}), 'other.pth')
    with pytest.raises(PretrainedError, match='keys of the file are model, optimizer(?s:.)*Fix: choose the arch'):
        make_model('tiny_vit', 4, pretrained='other.pth')
    torch.save(make_model('test_resnet', 4).state_dict(), 'flat.pth')
    with pytest.raises(PretrainedError, match='keys of the file are conv1.0.weight(, [^,]+){5}, ….\n'): make_model('tiny_vit', 4, pretrained='flat.pth')

@pytest.mark.parametrize('value', ['nan', 'inf', '-inf'])
def test_weights_that_are_not_finite_are_refused(value, tmp_path):
    sd = make_model('tiny_vit', 4).state_dict()
    def saved(name, dtype=torch.float32):
        bad = {k: v.clone().to(dtype) for k, v in sd.items()}
        bad[name].view(-1)[-1] = float(value)
        torch.save(bad, tmp_path/'w.pth')
        return tmp_path/'w.pth'
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        f = saved('blocks.1.mlp.fc1.weight', dtype)
        for load in (make_model, lambda arch, n_out, pretrained: preflight(arch, pretrained, n_out=n_out)):
            with pytest.raises(PretrainedError, match='1 tensors, such as blocks.1.mlp.fc1.weight(?s:.)*Fix: '): load('tiny_vit', 4, pretrained=f)
    f = saved('head.weight')
    with pytest.raises(PretrainedError, match='such as head.weight'): make_model('tiny_vit', 4, pretrained=f)
    with pytest.warns(UserWarning, match='starts fresh'): make_model('tiny_vit', 7, pretrained=f) # a head that isn't loaded

def test_running_statistics_are_checked_and_limits_may_be_infinite(tmp_path):
    net = make_model('test_resnet', 4)
    sd = net.state_dict()
    bn = next(k for k in sd if k.endswith('running_var'))
    torch.save(sd | {bn: torch.full_like(sd[bn], float('inf'))}, tmp_path/'w.pth')
    with pytest.raises(PretrainedError, match=bn): make_model('test_resnet', 4, pretrained=tmp_path/'w.pth')
    models._check_finite(net, tmp_path/'w.pth', {'clip.input_max': torch.tensor(float('inf'))})
