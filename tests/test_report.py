"Figures read and change nothing; a page is whole, says what it can't draw, and asks for nothing from outside"
import re, warnings
import matplotlib.pyplot as plt, numpy as np, pandas as pd, pytest
from vision_ft.core import DataError, Preds
from vision_ft.report import Section, error_table, fig_confusion, fig_errors, fig_losses, figure_html, write_report
from vision_ft.stats import wilson

def preds(names, n=60, name='net', seed=0):
    rng = np.random.default_rng(seed)
    return Preds([f'{i}.jpg' for i in range(n)], names, rng.dirichlet(np.ones(len(names)), n), rng.choice(np.array(names, dtype=object), n), name)

def test_errors_are_counted_and_bounded():
    p = preds(['a', 'b', 'c'])
    row = error_table([p]).loc['net']
    assert (row.wrong, row.n) == (p.wrong.sum(), 60)
    assert (row.low, row.high) == pytest.approx(wilson(int(row.wrong), 60))

def test_a_kind_may_lack_a_member():
    ax = fig_errors({'plain': [preds(['a', 'b'])], 'TTA': [preds(['a', 'b']), preds(['a', 'b'], name='all')]}).axes[0]
    assert [t.get_text() for t in ax.get_yticklabels()] == ['net', 'all']
    plt.close('all')

def test_many_classes_show_those_with_most_mistakes():
    p = preds([f'c{i:02}' for i in range(60)], n=600)
    ax = fig_confusion(p, most=10).axes[0]
    assert len(ax.get_xticks()) == 10
    plt.close('all')

NAMES = ['中文类别', '🐱 "cat", dog', '$_$ <b>&amp;', 'x'*120, 'NA']

def test_odd_class_names_give_one_sentence_and_no_warning(tmp_path):
    "Glyphs that no font has: one warning a character and figure before, one sentence now"
    p = preds(NAMES)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter('always')
        page = write_report(tmp_path/'r.html', NAMES[2], [Section(NAMES[1], lambda: fig_confusion(p), NAMES[0]), Section('t', p.df())])
    html = page.read_text(encoding='utf-8')
    assert not [w for w in said if 'Glyph' in str(w.message)]
    assert html.count('have no glyph') == 1 and 'could not be drawn' not in html
    assert '<b>' not in html and '中文类别' in html

def test_other_warnings_pass():
    def draw():
        warnings.warn('something else')
        return plt.figure()
    with pytest.warns(UserWarning, match='something else'): figure_html(draw, '')

def test_a_figure_that_fails_leaves_the_rest(tmp_path):
    page = write_report(tmp_path/'r.html', 'page', [Section('bad', lambda: 1/0), Section('good', lambda: plt.figure())]).read_text()
    assert 'division by zero' in page and page.count('<img') == 1
    assert not plt.get_fignums()

def test_what_cannot_be_shown_writes_nothing(tmp_path):
    with pytest.raises(DataError, match='Fix: '): write_report(tmp_path/'r.html', 'page', [Section('n', 3)])
    assert not list(tmp_path.iterdir())

def test_page_is_self_contained(tmp_path):
    h = pd.DataFrame(dict(epoch=[0, 1], train_loss=[1., .5], valid_loss=[1.1, .7]))
    page = write_report(tmp_path/'r.html', 'page', [Section('loss', lambda: fig_losses({'net': h}), 'curves')]).read_text()
    assert not re.search(r'(src|href)="(?!data:)', page) and '<script' not in page and 'name="viewport"' in page and 'alt="curves"' in page
