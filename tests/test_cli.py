"The command: what it asks for is what the library is given, refusals have no traceback, help loads nothing heavy"
import dataclasses, subprocess, sys
import pytest
from vision_ft import cli
from vision_ft.core import SettingsError

def run(*args, **kw): return subprocess.run([sys.executable, '-m', 'vision_ft.cli', *args], capture_output=True, text=True, **kw)

def test_every_option_reaches_its_field(monkeypatch):
    from vision_ft.classify import compete as C
    monkeypatch.setattr(cli, 'closing_words', str)
    given = {}
    monkeypatch.setattr(C, 'compete', lambda data, out, settings: given.update(data=data, out=out, settings=settings))
    line = ('compete photos --out run --epochs 3 --device cpu --models paddy --effective-bs 32 --micro-bs auto --no-flip --folds 4 '
            '--views plain hflip --ensemble-weights vit=2 swin=1 --groups g.csv --holdout .25 --workers 2 --seed 7')
    args = cli.parser().parse_args(line.split())
    args.run(args)
    assert (given['data'], given['out']) == ('photos', 'run')
    assert dataclasses.asdict(given['settings']) == dict(
        models='paddy', effective_bs=32, epochs=3, micro_bs='auto', flip=False, views=['plain', 'hflip'], ensemble_weights=dict(vit=2., swin=1.),
        groups='g.csv', holdout=.25, k=4, seed=7, device='cpu', num_workers=2)

def test_options_left_out_keep_the_defaults(monkeypatch):
    from vision_ft.classify import compete as C
    monkeypatch.setattr(cli, 'closing_words', str)
    given = []
    monkeypatch.setattr(C, 'compete', lambda data, out, settings: given.append(settings))
    args = cli.parser().parse_args(['compete', 'photos', '--out', 'run'])
    args.run(args)
    assert given[0] == C.CompeteSettings(models='tiny_photos', ensemble_weights={})

@pytest.mark.parametrize('pairs', [['vit'], ['vit=two'], ['=']])
def test_ensemble_weights_that_cannot_be_read(pairs):
    with pytest.raises(SettingsError, match='for example --ensemble-weights vit=2'): cli.parse_ensemble_weights(pairs)

def test_a_refusal_is_two_lines_and_status_2(tmp_path):
    got = run('compete', 'nowhere', '--out', 'run', cwd=tmp_path)
    assert got.returncode == 2 and 'Traceback' not in got.stderr
    assert got.stderr.strip().splitlines()[-1].strip().startswith('Fix: ') and not list(tmp_path.iterdir())

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

def test_plan_gets_what_was_asked(monkeypatch, capsys):
    from vision_ft.classify import plan as P
    given = []
    monkeypatch.setattr(P, 'plan', lambda *args: given.append(args) or 'the page')
    line = ('plan photos --device 16GB --budget 9h --out p.html --models paddy --groups g.csv --error .1 --seconds 0 --epochs 3 --effective-bs 32 '
            '--micro-bs auto --no-flip --folds 4 --views plain hflip --holdout .25 --workers 2 --seed 7')
    assert cli.main(line.split()) == 0 and capsys.readouterr().out == 'the page\n'
    data, out, settings, budget, error, seconds = given[0]
    assert (data, out, budget, error, seconds) == ('photos', 'p.html', '9h', .1, 0)
    assert dataclasses.asdict(settings) == dict(
        models='paddy', effective_bs=32, epochs=3, micro_bs='auto', flip=False, views=['plain', 'hflip'], ensemble_weights=None,
        groups='g.csv', holdout=.25, k=4, seed=7, device='16GB', num_workers=2)
