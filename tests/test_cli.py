"The command: what it asks for is what the library is given, refusals have no traceback, help loads nothing heavy"
import dataclasses, re, shlex, subprocess, sys
import pytest
from vision_ft import cli
from vision_ft.core import SettingsError

def run(*args, **kw): return subprocess.run([sys.executable, '-m', 'vision_ft.cli', *args], capture_output=True, text=True, **kw)

def test_every_option_reaches_its_field(monkeypatch):
    from vision_ft.classify import compete as C
    monkeypatch.setattr(cli, 'closing_words', str)
    given = {}
    monkeypatch.setattr(C, 'compete', lambda data, out, settings: given.update(data=data, out=out, settings=settings))
    line = ('compete photos --out run --epochs 3 --device cpu --arch vit_tiny_patch16_224,convnext_atto --size 160x128 --lr .002 --retrain '
            '--effective-bs 32 --micro-bs auto --no-flip --folds 4 --views plain hflip --ensemble-weights vit=2 swin=1 --groups g.csv '
            '--holdout .25 --workers 2 --seed 7 --cache kept')
    args = cli.parser().parse_args(line.split())
    args.run(args)
    assert (given['data'], given['out']) == ('photos', 'run')
    assert dataclasses.asdict(given['settings']) == dict(
        models='auto', arch='vit_tiny_patch16_224,convnext_atto', size='160x128', lr=.002, effective_bs=32, epochs=3, micro_bs='auto', flip=False,
        views=['plain', 'hflip'], ensemble_weights=dict(vit=2., swin=1.), groups='g.csv', holdout=.25, k=4, retrain=True, seed=7, device='cpu',
        num_workers=2, cache='kept')

def test_options_left_out_keep_the_defaults(monkeypatch):
    from vision_ft.classify import compete as C
    monkeypatch.setattr(cli, 'closing_words', str)
    given = []
    monkeypatch.setattr(C, 'compete', lambda data, out, settings: given.append(settings))
    args = cli.parser().parse_args(['compete', 'photos', '--out', 'run'])
    args.run(args)
    assert given[0] == C.CompeteSettings(ensemble_weights={})

def test_the_command_in_a_report_asks_for_the_same(monkeypatch):
    from vision_ft.classify import compete as C
    from vision_ft.classify.settings import command_line
    monkeypatch.setattr(cli, 'closing_words', str)
    given = []
    monkeypatch.setattr(C, 'compete', lambda data, out, settings: given.append((data, out, settings)))
    asked = C.CompeteSettings('my models.csv', size='160x128', lr=.002, epochs=3, effective_bs=32, micro_bs='auto', flip=False, views=['plain', 'hflip'],
                              ensemble_weights=dict(vit=2., swin=.5), groups='g.csv', holdout=.25, k=4, seed=0, device='cpu', num_workers=0)
    for s in (asked, C.CompeteSettings(ensemble_weights={}), C.CompeteSettings(arch='vit,swin', ensemble_weights={})):
        words = shlex.split(command_line('my photos', 'a run', s))
        args = cli.parser().parse_args(words[1:])
        args.run(args)
        assert given.pop() == ('my photos', 'a run', s)

@pytest.mark.parametrize('line', ['', 'demo', 'plan', 'compete', 'predict', 'kaggle', 'kaggle bundle', 'kaggle rehearse', 'kaggle submit'])
def test_every_help_explains_every_option(line, capsys):
    with pytest.raises(SystemExit): cli.main([*line.split(), '--help'])
    said = capsys.readouterr().out
    assert not re.search(r'^  (--[\w-]+|[a-z]+)( [A-Z]+)?$\n  \S', said, re.M) and max(map(len, said.splitlines())) < 100

def test_help_names_every_column_and_preset():
    from vision_ft.classify.settings import COLUMNS, presets
    said = run('compete', '--help').stdout
    assert all(re.search(rf'\b{name}\b', said) for name in [*COLUMNS, *presets()])

@pytest.mark.parametrize('pairs', [['vit'], ['vit=two'], ['=']])
def test_ensemble_weights_that_cannot_be_read(pairs):
    with pytest.raises(SettingsError, match='for example --ensemble-weights vit=2'): cli.parse_ensemble_weights(pairs)

def test_a_refusal_is_two_lines_and_status_2(tmp_path):
    got = run('compete', 'nowhere', '--out', 'run', cwd=tmp_path)
    assert got.returncode == 2 and 'Traceback' not in got.stderr
    assert got.stderr.strip().splitlines()[-1].strip().startswith('Fix: ') and not list(tmp_path.iterdir())

@pytest.mark.parametrize('option', [['--epochs', '0'], ['--device', 'tpu']])
def test_a_refused_demo_leaves_nothing_behind(tmp_path, option, capsys):
    assert cli.main(['demo', '--out', str(tmp_path/'demo'), *option]) == 2
    assert 'Fix: ' in capsys.readouterr().err and not list(tmp_path.iterdir())

def test_help_is_light():
    code = "import sys; from vision_ft.cli import parser; parser().format_help(); print([o for o in ('torch', 'fastai', 'pandas') if o in sys.modules])"
    assert subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True).stdout.strip() == '[]'

@pytest.mark.parametrize('line,says', [('demo', 'goes on'), ('compete d --out o', 'goes on'), ('plan d', 'starts anew'), ('predict r i --out l.csv', 'starts anew')])
def test_an_interrupt_says_what_the_same_command_does(monkeypatch, capsys, line, says):
    def stop(args): raise KeyboardInterrupt
    monkeypatch.setattr(cli, f'run_{line.split()[0]}', stop)
    assert cli.main(line.split()) == 130 and f'The same command {says}' in capsys.readouterr().err

@pytest.mark.parametrize('line,meant', [('pedict run new', 'predict'), ('kaggle bundel run', 'bundle'), ('predict run new --outt l.csv', '--out'), ('compete d --out o --epoks=3', '--epochs'),
                                        ('kaggle submit s.csv --compettion c', '--competition')])
def test_what_is_mistyped_is_named_with_what_was_meant(line, meant, capsys):
    with pytest.raises(SystemExit) as e: cli.main(line.split())
    assert e.value.code == 2 and capsys.readouterr().err.strip().endswith(f'; did you mean {meant}?')

def test_version(capsys):
    from vision_ft import __version__
    with pytest.raises(SystemExit) as e: cli.main(['--version'])
    assert not e.value.code and capsys.readouterr().out == f'vision-ft {__version__}\n'

def test_predict_gets_what_was_asked(monkeypatch, capsys):
    from vision_ft.classify import predict as P
    given = []
    monkeypatch.setattr(P, 'predict_csv', lambda *args, **kwargs: (given.append((args, kwargs)), (3, 1))[1])
    assert cli.main('predict run a.jpg b.jpg --out l.csv --tta --model vit --probs --device cpu --workers 2'.split()) == 0
    assert given == [(('run', ['a.jpg', 'b.jpg'], 'l.csv', True, True), dict(model='vit', device='cpu', num_workers=2))]
    assert '3 of 4 images predicted, see l.csv. 1 cannot be read' in capsys.readouterr().out
    assert cli.main('predict run new --out l.csv'.split()) == 0
    assert given[1] == (('run', ['new'], 'l.csv', False, False), dict(model=None, device=None, num_workers=None))

def test_predict_without_a_run_is_refused(tmp_path):
    got = run('predict', 'nowhere', 'new', '--out', 'l.csv', cwd=tmp_path)
    assert got.returncode == 2 and 'Fix: ' in got.stderr and not list(tmp_path.iterdir())

def test_plan_gets_what_was_asked(monkeypatch, capsys):
    from vision_ft.classify import plan as P
    given = []
    monkeypatch.setattr(P, 'plan', lambda *args: given.append(args) or 'the page')
    line = ('plan photos --device 16GB --budget 9h --out p.html --models paddy --groups g.csv --error .1 --seconds 0 --epochs 3 --effective-bs 32 '
            '--micro-bs auto --no-flip --folds 4 --views plain hflip --holdout .25 --workers 2 --seed 7 --size 96 --lr .01')
    assert cli.main(line.split()) == 0 and capsys.readouterr().out == 'the page\n'
    data, out, settings, budget, error, seconds = given[0]
    assert (data, out, budget, error, seconds) == ('photos', 'p.html', '9h', .1, 0)
    assert dataclasses.asdict(settings) == dict(
        models='paddy', arch=None, size='96', lr=.01, retrain=False, effective_bs=32, epochs=3, micro_bs='auto', flip=False, views=['plain', 'hflip'], ensemble_weights={},
        groups='g.csv', holdout=.25, k=4, seed=7, device='16GB', num_workers=2, cache=None)

def test_kaggle_bundle_gets_what_was_asked(monkeypatch, capsys):
    import pandas as pd
    from vision_ft.classify import bundle as B
    from vision_ft.classify.compete import CompeteSettings
    given = []
    monkeypatch.setattr(B, 'bundle', lambda *args: (given.append(args), pd.DataFrame(dict(bytes=[2_000_000])))[1])
    line = ('kaggle bundle run --out b --user me --competition paddy --slug my-bundle --image i.txt --python 3.13 --wheels w '
            '--no-gpu --hours 4 --max-gb 2 --epochs 3 --no-flip --folds 4 --views plain hflip --ensemble-weights a=2 --groups g.csv --seed 7')
    assert cli.main(line.split()) == 0
    wanted = B.BundleSettings(user='me', slug='my-bundle', competition='paddy', image='i.txt', python='3.13', wheels='w', gpu=False, hours=4., max_gb=2.)
    there = CompeteSettings(epochs=3, flip=False, k=4, views=['plain', 'hflip'], ensemble_weights=dict(a=2.), groups='g.csv', seed=7)
    assert given == [('run', 'b', wanted, there)]
    said = capsys.readouterr().out
    assert '2.0 MB' in said and 'vision-ft kaggle rehearse b' in said and 'USERNAME' not in said
    monkeypatch.delenv('KAGGLE_USERNAME', raising=False)
    assert cli.main('kaggle bundle tiny --out b'.split()) == 0 and given[1] == ('tiny', 'b', B.BundleSettings(), CompeteSettings())
    assert 'Replace USERNAME' in capsys.readouterr().out

@pytest.mark.parametrize('problems,status', [([], 0), (['it asked for example.org.'], 2)])
def test_kaggle_rehearse_fails_where_something_would_break(monkeypatch, capsys, problems, status):
    from pathlib import Path
    from vision_ft.classify import rehearse as R
    given = []
    monkeypatch.setattr(R, 'rehearse', lambda *args: (given.append(args), R.Rehearsal(problems, [], 1., 1., Path('b')))[1])
    assert cli.main('kaggle rehearse b --data d --time 1m --memory 2GB --earlier e'.split()) == status
    assert given == [('b', 'd', '1m', '2GB', None, 'e')]
    said = capsys.readouterr()
    assert ('kaggle kernels push -p b/notebook' in said.out) == (not problems)
    assert ('Nothing would break' in said.out) == (not problems) and ('example.org' in said.err) == bool(problems)

def test_kaggle_submit_gets_what_was_asked(monkeypatch, capsys):
    from vision_ft.classify import kaggle as K
    given = []
    monkeypatch.setattr(K, 'submit', lambda *args, ids=None: (given.append(args), 'sent')[1])
    assert cli.main('kaggle submit s.csv --competition c --message m --last l.csv --dry-run'.split()) == 0
    assert given == [('s.csv', 'c', 'm', None, None, 'l.csv', True)] and capsys.readouterr().out == 'sent\n'
    assert cli.main('kaggle submit s.csv --competition c --message m'.split()) == 0
    assert capsys.readouterr().out.splitlines() == ['sent', 'score  kaggle competitions submissions c']

@pytest.mark.parametrize('lacks', ['--message m', '--competition c'])
def test_kaggle_submit_needs_competition_and_message(lacks, capsys):
    with pytest.raises(SystemExit): cli.main(f'kaggle submit s.csv {lacks}'.split())
    assert 'required' in capsys.readouterr().err
