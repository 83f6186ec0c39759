"Settings of a training, and tables of models"
import pytest
from dataclasses import replace
from vision_ft.classify.settings import TrainSettings
from vision_ft.core import SettingsError

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
