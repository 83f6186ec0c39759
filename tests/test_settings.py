"Settings of a training, and tables of models"
import shlex
from dataclasses import fields, replace
import pandas as pd, pytest
from vision_ft.classify.settings import (CompeteSettings, TrainSettings, arch_models, auto_preset, check_models, command_line, item_in_proportion, presets, read_models,
                                         row_settings, save_models)
from vision_ft.classify.settings import read_args
from vision_ft.core import PretrainedError, SettingsError, parse_size
from vision_ft.runs import Run

def test_settings_read_what_they_wrote():
    s = TrainSettings('tiny_vit', size='48x32', effective_bs=16, micro_bs=5)
    assert replace(s) == s and replace(s, micro_bs=None, accum=2).accum == 2
    assert (s.size, s.micro_bs) == ((48, 32), 5)
    assert TrainSettings('tiny_vit', pretrained=float('nan')).pretrained is None # an empty cell of a table

@pytest.mark.parametrize('bad,words', [
    (dict(accum=2, micro_bs=8), 'say the same thing twice'), (dict(accum='auto'), "pass micro_bs='auto'"),
    (dict(micro_bs=65), 'at most 64'), (dict(lr=0), 'lr must be'), (dict(lr='fast'), 'lr must be'), (dict(epochs=1.5), 'epochs must be'),
    (dict(seed=2**32), 'seed must be'), (dict(item=''), "write it like 'squish 480'"), (dict(size='big'), 'not a size')])
def test_settings_that_cannot_work(bad, words):
    with pytest.raises(SettingsError, match=words): TrainSettings('tiny_vit', **bad)

# --- which models

@pytest.fixture
def cache(tmp_path, monkeypatch):
    "An empty cache of the hub, without network"
    import huggingface_hub
    monkeypatch.setattr(huggingface_hub.constants, 'HF_HUB_CACHE', str(tmp_path/'hub'))
    monkeypatch.setattr(huggingface_hub.constants, 'HF_HUB_OFFLINE', True)
    return tmp_path/'hub'

def seed_cache(cache, arch):
    "Random weights where a download would have put the published ones"
    import timm
    from safetensors.torch import save_file
    state = timm.create_model(arch).state_dict()
    folder = cache/f'models--{timm.get_pretrained_cfg(arch).hf_hub_id.replace("/", "--")}'
    (folder/'snapshots'/'0a1b').mkdir(parents=True)
    (folder/'refs').mkdir()
    (folder/'refs'/'main').write_text('0a1b')
    save_file({k: v.contiguous() for k, v in state.items()}, folder/'snapshots'/'0a1b'/'model.safetensors')
    return state

def test_laptop_is_what_auto_means_where_its_weights_are(cache, tmp_path):
    "Each network of the preset loads from the hub's cache, at its size; where one is missing, auto says which, and what it takes instead"
    from vision_ft.models import make_model
    import torch
    archs = [r['arch'] for r in read_models('laptop')]
    states = {a: seed_cache(cache, a) for a in archs[:2]}
    preset, why = auto_preset('cpu')
    assert preset == 'tiny_photos' and archs[2] in why and 'laptop' in why
    states[archs[2]] = seed_cache(cache, archs[2])
    models = check_models(CompeteSettings(device='cpu'), tmp_path/'out')
    assert len(models.says) == 1 and 'laptop' in models.says[0] and [t.arch for t in models.trainings.values()] == archs
    for t in models.trainings.values():
        assert t.pretrained == 'hub' and 160 <= t.size[0] <= 224
        model, said = make_model(t.arch, 3, 'hub', t.size), states[t.arch]
        assert model.eval()(torch.zeros(1, 3, *t.size)).shape == (1, 3)
        same = [k for k, v in model.state_dict().items() if k in said and v.shape == said[k].shape and v.is_floating_point() and v.std() > 0]
        assert len(same) > 20 and all(torch.equal(model.state_dict()[k], said[k]) for k in same)

def test_auto_keeps_what_the_folder_was_made_with(cache, tmp_path):
    save_models(read_models('tiny'), tmp_path/'models.csv')
    models = check_models(CompeteSettings(device='cpu'), tmp_path)
    assert models.rows == read_models('tiny') and 'models.csv' in models.says[0]

def test_an_architecture_alone_has_the_row_that_was_chosen_for_it(cache):
    seed_cache(cache, 'convnext_atto.d2_in1k')
    rows, says = arch_models('tiny_vit, convnext_atto,regnetx_002')
    tiny, atto, other = map(row_settings, rows)
    laptop, = (row_settings(r) for r in read_models('laptop') if r['name'] == 'convnext_atto')
    assert (tiny.pretrained, tiny.lr) == ('tiny', .001) and replace(atto, arch=laptop.arch) == laptop
    assert other.pretrained is None and len(says) == 1 and says[0].startswith('regnetx_002: no pretrained weights')

def test_options_replace_what_rows_say():
    for preset in presets():
        for row in read_models(preset):
            s, own = row_settings(row, lr=.123, epochs=2, size='64x32'), row_settings(row)
            assert (s.lr, s.epochs, s.size, s.pretrained, s.effective_bs) == (.123, 2, (64, 32), own.pretrained, own.effective_bs)
    assert row_settings(dict(name='a', arch='tiny_vit', accum=4), micro_bs=8).micro_bs == 8

@pytest.mark.parametrize('said,size,item', [
    (dict(item='squish 480', size=224), 224, 'squish 480'), (dict(item='squish 480', size=224), 112, 'squish 240'), (dict(), 448, 'squish 960'),
    (dict(item='crop 640x480', size='320x224'), '160x112', 'crop 320x240'), (dict(item='pad 128', size=64), '128x64', 'pad 256')])
def test_another_size_takes_images_along(said, size, item): assert item_in_proportion(said, size) == item

@pytest.mark.parametrize('groups', [pd.Series(['a', 'a'], index=['1.jpg', '2.jpg']), {'1.jpg': 'a'}, pd.DataFrame(dict(id=['1.jpg'], group=['a']))])
def test_tables_that_were_passed_are_files_in_the_command(groups):
    said = command_line('photos', 'run', CompeteSettings(read_models_table(), groups=groups))
    assert said == 'vision-ft compete photos --out run --models run/models.csv --groups run/groups.csv'

def read_models_table(): return pd.DataFrame(read_models('tiny'))

def test_an_item_is_kept_where_the_size_is():
    "A side that is no multiple of 16 as well"
    assert item_in_proportion(dict(item='squish 500', size=224), 224) == 'squish 500'
    assert item_in_proportion(dict(item='crop 500x300', size='320x224'), '320x224') == 'crop 500x300'

@pytest.mark.parametrize('field,value', [('finetune', 'no'), ('flip', 'no'), ('flip', 1), ('arch', None), ('arch', 3), ('item', 480), ('vocab', 'abc'), ('model_args', '{}')])
def test_each_field_has_its_type(field, value):
    "Text such as 'no' would count as True"
    with pytest.raises(SettingsError, match=f'{field} is') as e: TrainSettings(**{'arch': 'tiny_vit', field: value})
    assert e.value.fix.startswith('pass ')

# --- the command that asks for the same

SAMPLES = dict(models=['paddy', 'my models.csv', '/a b/models.csv'], arch=['tiny_vit,convnext_atto'], size=[224, '320x224', (320, 224), [64, 48], (96,)], lr=[.1, 1e-5, 1/3], epochs=[3],
               effective_bs=[7], micro_bs=[8, 'auto'], flip=[False], views=['symbols', ['plain', 'hflip']], ensemble_weights=[dict(a=1/3, b=2), {'a=b': .5}], groups=['my groups.csv'],
               holdout=[.33], k=[3], retrain=[], seed=[0, 7], device=['cuda:1'], num_workers=[0, 4], cache=['my cache'])

@pytest.mark.parametrize('field,value', [(f.name, v) for f in fields(CompeteSettings) for v in SAMPLES[f.name]])
def test_every_field_is_read_back_from_its_command(field, value):
    "By the parser of the command line, to the same settings; a field without a sample fails"
    from vision_ft.cli import compete_settings, parser
    words = shlex.split(command_line('my photos', 'a run', CompeteSettings(**{field: value})))
    args = parser().parse_args(words[1:])
    said, usual = getattr(compete_settings(args), field), getattr(CompeteSettings(), field)
    alike = dict(size=parse_size, micro_bs=str, views=lambda v: [v] if isinstance(v, str) else v).get(field, lambda v: v)
    assert (args.data, args.out) == ('my photos', 'a run') and alike(said) == alike(value) and said != usual

# --- architectures by name

@pytest.mark.parametrize('archs', [',', '', ' , ', 'tiny_vit,tiny_vit', 'tiny_vit, tiny_swin ,tiny_vit', 'hf_hub:somebody/tiny_vit'])
def test_a_list_of_architectures_that_says_nothing_is_refused(archs, cache):
    with pytest.raises(SettingsError, match='arch') as e: arch_models(archs)
    assert e.value.fix and 'copy a preset' not in e.value.fix and 'name of its own' not in e.value.fix

def test_the_hubs_spelling_of_an_architecture(cache):
    seed_cache(cache, 'convnext_atto.d2_in1k')
    for name in ('hf_hub:timm/convnext_atto.d2_in1k', 'hf-hub:timm/convnext_atto.d2_in1k'):
        (row,), says = arch_models(name)
        assert row['name'] == row['arch'] == 'convnext_atto.d2_in1k' and row['pretrained'] == 'hub' and not says

def test_architectures_of_a_result_stay_as_they_were(cache, tmp_path):
    "Their weights were within reach then, and aren't now"
    rows = [dict(name='convnext_atto', arch='convnext_atto', pretrained='hub', lr=.5)]
    save_models(rows, tmp_path/'models.csv')
    (tmp_path/'runs'/'convnext_atto').mkdir(parents=True)
    s = CompeteSettings(arch='convnext_atto', device='cpu')
    with pytest.raises(PretrainedError): check_models(s, tmp_path) # still to train
    with Run(tmp_path/'runs'/'convnext_atto').stage('train', {}): pass
    models = check_models(s, tmp_path)
    assert models.rows == read_models(tmp_path/'models.csv') and models.trainings['convnext_atto'].lr == .5 and not models.says

@pytest.mark.parametrize('name', ['checkpoint_path', 'pretrained_cfg', 'features_only', 'cache_dir'])
def test_weights_come_from_the_column_pretrained(name):
    with pytest.raises(SettingsError, match='column pretrained'): read_args({name: 'x'})
