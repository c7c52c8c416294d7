"""Requests as strangers write them: refused with each field that is wrong, or taken and kept."""

from __future__ import annotations

import json
from typing import Any

from hypothesis import strategies as st

from generated import count, fuzzed, json_values, nested, numbers, scalars, surrogates, texts
from ltxq.errors import InvalidRequest
from ltxq.job import VideoRequest

FIELDS = tuple(VideoRequest.model_fields)

sensible: dict[str, st.SearchStrategy[Any]] = {
    "prompt": texts,
    "height": st.sampled_from([64, 96, 512]),
    "width": st.sampled_from([64, 768]),
    "frame_rate": st.floats(1, 60),
    "num_frames": st.sampled_from([1, 9, 17, 10**400 + 1]),
    "metadata": st.dictionaries(texts, texts | surrogates, max_size=3),
    "webhook_url": st.sampled_from(["https://example.com/", "http://\0", "https://[", "//x"]),
    "crop_width": st.sampled_from([64, 766]),
}
requests = st.one_of(
    json_values(),
    st.fixed_dictionaries(
        {"prompt": texts},
        optional={name: sensible.get(name, scalars) | numbers for name in FIELDS[1:]},
    ),
    st.dictionaries(st.sampled_from(FIELDS) | texts | surrogates, json_values(), max_size=6),
    st.integers(1, 300).map(lambda depth: {"prompt": nested(depth), "metadata": nested(depth)}),
)


@fuzzed(0.35, fields=requests)
def test_a_request_is_refused_by_its_fields_or_kept_as_it_came(fields: Any) -> None:
    count()
    try:
        request = VideoRequest.parse(fields)
    except InvalidRequest as exc:
        assert exc.problems
        for field, reason in exc.problems:
            assert field.isprintable()
            assert reason
            assert len(reason) < 1000
        assert "\n" not in str(exc)
        str(exc).encode()
        return
    again = VideoRequest.parse(json.loads(request.model_dump_json()))
    assert again == request
    assert request.prompt == fields["prompt"]
