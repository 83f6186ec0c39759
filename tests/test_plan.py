"Before a training: the split that compete makes, copies, memory, time, the budget, and a command that starts"
import math, shlex, shutil, time
from dataclasses import replace
from pathlib import Path
import numpy as np, pandas as pd, pytest
from PIL import Image
from vision_ft import cli
from vision_ft.classify import plan as P
from vision_ft.classify.compete import CompeteSettings, prepare
from vision_ft.classify.settings import TrainSettings, check_models
from vision_ft.classify.train import train
from vision_ft.core import DataError, SettingsError
from vision_ft.data.splits import group_pairs

def noise(path, seed, size=32):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(seed).integers(0, 255, (size, size, 3), dtype=np.uint8)).save(path)

@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    "Three classes of 30, 25 and 20 images, two of them copies"
    root = tmp_path_factory.mktemp('data')/'my leaves'
    for c, n in dict(a=30, b=25, c=20).items():
        for i in range(n): noise(root/c/f'{c}{i:02}.png', seed=100*ord(c)+i)
    shutil.copy(root/'a'/'a00.png', root/'a'/'copy.png')
    return root

MODELS = pd.DataFrame([dict(name='vit', arch='tiny_vit'), dict(name='swin', arch='tiny_swin')])

@pytest.fixture
def models(tmp_path):
    MODELS.assign(epochs=3).to_csv(tmp_path/'my models.csv', index=False)
    return str(tmp_path/'my models.csv')

def test_the_split_is_that_of_compete(folder, tmp_path):
    groups = {f'b/b{i:02}.png': f'plant {i//3}' for i in range(25)}
    s = CompeteSettings(models=MODELS, groups=groups, k=3, seed=1, device='cpu')
    facts, ready = P.read_facts(folder, s), prepare(folder, tmp_path/'out', s)
    for part in ('train', 'valid'): assert getattr(facts, part).id.tolist() == getattr(ready, part).id.tolist()
    assert facts.test.id.tolist() == ready.comp.test.id.tolist() and facts.test.label.tolist() == list(ready.comp.truth.values())
    assert sorted(facts.copies.id) == ['a/a00.png', 'a/copy.png']
    side = pd.concat([facts.train.assign(part=0), facts.valid.assign(part=1), facts.test.assign(part=2)]).set_index('id').part
    assert side['a/a00.png'] == side['a/copy.png'] and side.groupby(groups).nunique().max() == 1

def test_a_given_split_is_kept(tmp_path):
    for k, (part, n) in enumerate(dict(train=12, valid=5).items()):
        for c in 'ab':
            for i in range(n): noise(tmp_path/'in parts'/part/c/f'{i:02}.png', seed=1000*k+100*ord(c)+i)
    s = CompeteSettings(models=MODELS, device='cpu')
    facts, ready = P.read_facts(tmp_path/'in parts', s), prepare(tmp_path/'in parts', tmp_path/'out', s)
    assert facts.valid.id.str.startswith('valid/').all() and len(facts.valid) == 10
    for part in ('train', 'valid'): assert getattr(facts, part).id.tolist() == getattr(ready, part).id.tolist()

def test_what_compete_refuses_is_refused(folder, tmp_path):
    "With all that is broken counted, and nothing written"
    broken = tmp_path/'broken'
    shutil.copytree(folder, broken)
    (broken/'a'/'zz.jpg').write_bytes(b'\xff\xd8 nothing')
    (broken/'b'/'half.png').write_bytes((broken/'b'/'b00.png').read_bytes()[:900])
    before = sorted(p for p in tmp_path.rglob('*'))
    for ask in (lambda: P.plan(broken, models=MODELS, device='16GB'), lambda: prepare(broken, tmp_path/'out', CompeteSettings(MODELS, device='cpu'))):
        with pytest.raises(DataError, match='(?s)2 of 78 images cannot be read.*half.png.*replace or remove them') as e: ask()
        assert str(tmp_path) not in str(e.value)
    assert sorted(p for p in tmp_path.rglob('*')) == before

def test_linked_class_folders_and_notes(folder, tmp_path):
    "Classes that are links are read, and each warning is noted once"
    linked = tmp_path/'linked'
    for c in 'abc': (linked/c).mkdir(parents=True) if c == 'c' else (linked.mkdir(exist_ok=True), (linked/c).symlink_to(folder/c))
    for f in (folder/'c').iterdir(): (linked/'c'/f.name).symlink_to(f)
    (linked/'c'/'raw').write_bytes(b'1')
    facts = P.read_facts(linked, CompeteSettings())
    assert len(facts.table) == 76 and len(facts.notes) == 1 and 'without a suffix' in facts.notes[0]

def pasted(command, monkeypatch):
    "What `compete` gets from a command: data, out, settings; its own checks of the models are made"
    args, given = cli.parser().parse_args(shlex.split(command)[1:]), []
    with monkeypatch.context() as m:
        m.setattr('vision_ft.classify.compete.compete', lambda data, out, settings: given.append((data, out, settings)))
        m.setattr(cli, 'closing_words', str)
        args.run(args)
    data, out, settings = given[0]
    check_models(settings, out)
    return data, out, settings

def test_the_command_can_be_pasted(folder, models, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    s = CompeteSettings(models, epochs=2, flip=False, k=4, views=['plain', 'random1'], device='cpu', seed=7, holdout=.25)
    data, out, settings = pasted(P.plan(folder, settings=s, seconds=0).command, monkeypatch)
    assert (data, out) == (str(folder), 'my leaves-run') and replace(settings, ensemble_weights=None) == s
    prepare(data, out, settings) # and it is not refused
    assert P.plan(folder, settings=s, seconds=0).command.split(' --models')[0].endswith("'my leaves-run1'")
    monkeypatch.chdir(folder)
    assert not P._free_folder('.').startswith('my') # never among the data

@pytest.mark.parametrize('weights', [dict(vit=2., swin=1.), dict(swin=1.), None])
def test_a_model_that_cannot_start_is_left_out(folder, tmp_path, monkeypatch, weights):
    "With its weight in the ensemble; the command passes the checks of compete"
    monkeypatch.chdir(tmp_path)
    MODELS.assign(pretrained=['', 'nowhere.pth']).to_csv('two.csv', index=False)
    s = CompeteSettings('two.csv', ensemble_weights=weights, device='16GB')
    said = P.plan(folder, 'plan', settings=s)
    data, out, settings = pasted(said.command, monkeypatch)
    assert check_models(settings, out).ensemble_weights == dict(vit=1) and settings.device is None
    alone = P.plan(folder, settings=s)
    assert alone.command == '' and 'pass --out folder' in alone.to_do.lower() and 'No command can start' in alone.to_do

def table(**columns):
    "A table as of `model_table`, of three models that take 110 s each, 50 s an epoch"
    d = pd.DataFrame(dict(weights='file', micro_bs=8, fits=64, epochs=2, epoch_s=50., total_s=110., fix=''), index=list('abc'))
    d['until_s'] = d.total_s.cumsum()
    d = d.assign(able=True, in_budget=True).assign(**columns)
    return d.assign(ready=d.able & d.in_budget)

def test_a_budget_is_kept():
    s, late = CompeteSettings('tiny'), table(in_budget=[True, True, False])
    assert P.affordable_epochs(table(), 329) == 1 and P.affordable_epochs(table(), 331) == 2 and P.affordable_epochs(table(), 100) == 0
    assert P.startable(s, late, 230) == replace(s, epochs=1)
    assert P._time_advice(late, 230, False) == ['In 4 min the first 2 of 3 models are done: a, b. All of them are with --epochs 1.']
    assert P.startable(s, late, 230, Path('o')).models == 'o/models.csv'
    assert P.startable(s, table(in_budget=False), 20) is None and P.start_command('d', None) == ''
    lost = table(in_budget=[True, False, False], able=[True, True, False]) # too late, then one without weights
    assert P.startable(s, lost, 230) is None
    assert not P._time_advice(table(), math.inf, False)

def test_unknown_times_say_why(folder):
    unknown = table(total_s=math.nan)
    assert P._time_advice(unknown, 5, elsewhere=True) == ['Times are unknown: run plan on the machine that is to train.']
    assert P._time_advice(unknown, 5, elsewhere=False) == ['Times are unknown: pass --seconds 2.']

def test_memory_and_weights_on_another_card(folder):
    rows = pd.DataFrame([dict(name='small', arch='tiny_vit'), dict(name='large', arch='vit_large_patch16_224', pretrained='hub'),
                         dict(name='auto', arch='vit_large_patch16_224', micro_bs='auto')])
    m = P.plan(folder, models=rows, device='12 GB').models
    assert m.weights.tolist() == ['none', 'missing', 'none'] and m.ready.tolist() == [True, False, True]
    assert m.fits['large'] < 64 == m.micro_bs['large'] and m.micro_bs['auto'] == m.fits['large'] and m.peak_mib['auto'] < 12*1024 < m.peak_mib['large']
    assert m.total_s.isna().all() and 'micro-bs auto' in ' '.join(P._model_advice(m))
    with pytest.raises(SettingsError, match='device'): P.plan(folder, models=rows, device='gpu')
    with pytest.raises(SettingsError, match='epochs'): P.plan(folder, models=rows, epochz=1)
    for wrong in (dict(error=7), dict(error=math.nan), dict(seconds=-1)):
        with pytest.raises(SettingsError, match=next(iter(wrong))): P.plan(folder, models=rows, **wrong)

@pytest.mark.parametrize('arch,accum', [('tiny_swin', 1), ('tiny_convnext', 2), ('tiny_vit', 1), ('test_convnext', 1)])
def test_predicted_time_is_that_of_a_training(folder, monkeypatch, arch, accum):
    "In seconds of this process's CPU, which the load of the machine changes little: within a factor of 1.3"
    monkeypatch.setattr(time, 'perf_counter', time.process_time)
    facts = P.read_facts(folder, CompeteSettings())
    s = TrainSettings(arch, size=64, item='squish 64', effective_bs=16, accum=accum, epochs=4)
    ratios = []
    for _ in range(3):
        speed = P.measure_speed(facts, s, 16//accum, seconds=1)
        done = train(facts.train, facts.valid, s, device='cpu', progress=False)
        ratios.append(done.seconds/(speed.setup+s.epochs*speed.epoch(len(facts.train), len(facts.valid))))
    assert 1/1.3 < np.median(ratios) < 1.3, ratios

def test_a_cpu_gets_no_workers(folder):
    "By whatever name it is given: two processes an epoch made the predicted time twice too long"
    import torch
    from vision_ft.classify.train import dataloaders
    facts, s = P.read_facts(folder, CompeteSettings()), TrainSettings('tiny_vit', size=32, item='squish 32')
    for device in ('cpu', torch.device('cpu')): assert dataloaders(facts.train, facts.valid, s, device=device).train.fake_l.num_workers == 0

def test_auto_names_its_table(folder, tmp_path, monkeypatch):
    "The command may be pasted on a machine where auto means something else"
    monkeypatch.setattr(P, 'auto_preset', lambda device: ('tiny_photos', f'asked for {device}'))
    monkeypatch.chdir(tmp_path)
    said = P.plan(folder, seconds=0, device='16GB')
    assert '--models tiny_photos' in said.command and 'Models: tiny_photos (asked for cpu).' in said.advice and '--device' not in said.command
    alone = P.plan(folder, arch='tiny_vit,tiny_swin', size='48', seconds=0)
    assert alone.models['size'].tolist() == ['48x48']*2 and '--arch tiny_vit,tiny_swin --size 48' in alone.command

def test_probes_say_what_a_training_has_to_beat(folder):
    "Those that take long are left to compete; one that is trained from random weights has none"
    rows = pd.DataFrame([dict(name='vit', arch='tiny_vit', pretrained='tiny'), dict(name='swin', arch='tiny_swin')])
    s = CompeteSettings(rows, device='cpu')
    facts, trainings = P.read_facts(folder, s), P.planned_models(s)[2]
    models = pd.DataFrame(dict(weights=['file', 'none'], probe_s=[3., 3.]), index=['vit', 'swin'])
    answers, spent = P.first_answers(facts, trainings, models, s)
    assert sorted(answers.index) == ['SVC on pixels', 'largest class', 'linear probe tiny_vit 32'] and answers.wrong.notna().all()
    assert answers.wrong['largest class'] == (facts.valid.label != facts.train.label.mode()[0]).mean()
    left, longer = P.first_answers(facts, trainings, models.assign(probe_s=300.), s)
    assert 0 < spent < 300 < longer
    assert np.isnan(left.wrong['linear probe tiny_vit 32']) and 'left to compete' in P._answers_text(left).to_string()
    assert 'only if it beats' in P._visible_advice(facts, .2, left)[0]

def test_the_page_and_the_table(folder, tmp_path):
    rows = MODELS.assign(pretrained=['', 'nowhere.pth'])
    said = P.plan(folder, tmp_path/'plan', models=rows, device='16GB', budget='1h')
    page = (tmp_path/'plan'/'plan.html').read_text()
    assert pd.read_csv(tmp_path/'plan'/'models.csv').name.tolist() == ['vit'] and str(tmp_path/'plan'/'models.csv') in said.command
    assert said.counts.splitlines()[0].replace("'", '&#x27;') in page and page.count('<img') == 2 and 'Times are unknown' in page
    P.plan(folder, tmp_path/'one.html', models=MODELS, device='16GB')
    assert sorted(f.name for f in tmp_path.iterdir()) == ['one.html', 'plan']

def test_real_photographs(photos, tmp_path):
    "Look-alike rice leaves count as one, and lie on one side"
    rice = photos/'rice'/'photos'
    if not rice.is_dir(): pytest.skip('VISION_FT_DATA has no rice')
    pairs = pd.read_csv(photos/'rice'/'pairs.csv')
    pairs = pairs[pairs.a.str.startswith('photos/') & pairs.b.str.startswith('photos/')]
    groups = group_pairs(pairs[['a', 'b']].map(lambda o: o.removeprefix('photos/')))
    groups.rename_axis('id').to_csv(tmp_path/'groups.csv')
    said = P.plan(rice, models='tiny_photos', groups=str(tmp_path/'groups.csv'), seconds=.5, device='cpu')
    assert said.labels.images.sum() == 164 and (said.labels.independent <= said.labels.valid).all()
    assert 'no difference between two models can be seen' in said.counts and 'Keep several models' in said.to_do and said.models.total_s.between(0, 1000).all()
    assert '--groups' in said.command
    probes = said.answers[said.answers.index.str.startswith('linear probe')]
    assert len(probes) == 3 and probes.wrong.dropna().between(0, .75).all() and said.answers.wrong['largest class'] > .5
