"What the chapter on models can't show in passing: foreign files, no network, no memory."
import warnings
import psutil, pytest, timm, torch
from safetensors.torch import load_file, save_file
from vision_ft.core import SettingsError, PretrainedError
from vision_ft.models import TINY, body_head, family, fetch_pretrained, make_model, old_names, preflight, save_checkpoint, today

def test_every_retired_name_leads_to_a_model_with_that_tag():
    retired = list(timm.models.get_deprecated_models())
    assert {today(o) for o in retired} <= set(timm.list_models(include_tags=True))
    assert all(o in old_names(today(o)) for o in retired[::10])

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
    with pytest.warns(UserWarning, match='its head has 4 classes, the model needs 7'): c = make_model(arch, 7, pretrained=f)
    for (k, u), v in zip(a.state_dict().items(), b.state_dict().values()): assert torch.equal(u, v), k
    for u, v in zip(*(body_head(m)[0] for m in (a, c))): assert torch.equal(u, v)
    assert [len(g) for g in body_head(c)][1] == 2

def test_half_precision_file_of_a_body_alone(tmp_path):
    a = make_model('tiny_vit', 4)
    save_file({k: v.half() for k, v in a.state_dict().items() if not k.startswith('head.')}, tmp_path/'body.safetensors')
    with pytest.warns(UserWarning, match='its head is missing'): b = make_model('tiny_vit', 9, pretrained=tmp_path/'body.safetensors', size=64)
    assert torch.equal(b.patch_embed.proj.weight, a.patch_embed.proj.weight.half().float())

def test_nothing_but_the_head_may_be_missing(tmp_path):
    f = save_checkpoint(make_model('tiny_convnext', 4), tmp_path/'w.safetensors')
    sd = load_file(f)
    lost = {k: v for k, v in sd.items() if not k.startswith('stages.3')}
    save_file(lost, tmp_path/'lost.safetensors')
    save_file(sd | {'stem.0.weight': torch.zeros(8, 3, 2, 2)}, tmp_path/'shape.safetensors')
    with pytest.raises(PretrainedError, match=rf'{len(sd)-len(lost)} missing, such as stages.3'): make_model('tiny_convnext', 4, pretrained=tmp_path/'lost.safetensors')
    with pytest.raises(PretrainedError, match=r'1 of another shape, such as stem.0.weight \(8, 3, 2, 2\)'): make_model('tiny_convnext', 4, pretrained=tmp_path/'shape.safetensors')

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
    with pytest.raises(PretrainedError, match='holds tensors only'): make_model('tiny_vit', 4, pretrained=tmp_path/'w.pth')
    assert 'never' not in capsys.readouterr().out

def test_no_network_is_said_with_both_mends(monkeypatch, tmp_path):
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
