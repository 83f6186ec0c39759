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
            '--holdout .25 --workers 2 --seed 7')
    args = cli.parser().parse_args(line.split())
    args.run(args)
    assert (given['data'], given['out']) == ('photos', 'run')
    assert dataclasses.asdict(given['settings']) == dict(
        models='auto', arch='vit_tiny_patch16_224,convnext_atto', size='160x128', lr=.002, effective_bs=32, epochs=3, micro_bs='auto', flip=False,
        views=['plain', 'hflip'], ensemble_weights=dict(vit=2., swin=1.), groups='g.csv', holdout=.25, k=4, retrain=True, seed=7, device='cpu',
        num_workers=2)

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

def test_an_interrupt_says_that_nothing_is_lost(monkeypatch, capsys):
    def stop(args): raise KeyboardInterrupt
    monkeypatch.setattr(cli, 'run_demo', stop)
    assert cli.main(['demo']) == 130 and 'goes on' in capsys.readouterr().err

def test_predict_gets_what_was_asked(monkeypatch, capsys):
    from vision_ft.classify import predict as P
    given = []
    monkeypatch.setattr(P, 'predict_csv', lambda *args: (given.append(args), (3, 1))[1])
    assert cli.main('predict run a.jpg b.jpg --out l.csv --tta --model vit --probs --device cpu'.split()) == 0
    assert given == [('run', ['a.jpg', 'b.jpg'], 'l.csv', True, 'vit', True, 'cpu')]
    assert '1 could not be read' in capsys.readouterr().out
    assert cli.main('predict run new --out l.csv'.split()) == 0
    assert given[1] == ('run', 'new', 'l.csv', False, None, False, None)

def test_predict_without_a_run_is_refused(tmp_path):
    got = run('predict', 'nowhere', 'new', '--out', 'l.csv', cwd=tmp_path)
    assert got.returncode == 2 and 'Fix: ' in got.stderr and not list(tmp_path.iterdir())
