import json

import pytest

from sapa_mm.tools import output


def test_files_are_written_whole_or_not_at_all(tmp_path):
    path = tmp_path / 'figures.json'
    output.write_json(path, {'a': 1})
    assert json.loads(path.read_text()) == {'a': 1}
    with pytest.raises(TypeError):
        output.write_json(path, {'a': object()})

    def fail(part):
        part.write_text('half')
        raise OSError('disk full')

    with pytest.raises(OSError, match='disk full'):
        output.write_atomically(path, fail)
    assert [p.name for p in tmp_path.iterdir()] == ['figures.json']
    assert json.loads(path.read_text()) == {'a': 1}
