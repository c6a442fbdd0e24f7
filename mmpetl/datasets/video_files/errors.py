# SPDX-License-Identifier: Apache-2.0
"""What is wrong with a video file, in one line."""

import re

#: What the decoders' messages mean; the first pattern that is found counts.
MEANINGS = (
    (r'cannot find video stream|tuple index out of range', 'it has no video stream that this decoder can read'),
    (r"Error reading|processing input: '<none>'|__len__|Invalid data found when processing input|moov atom not found",
     'it is no video, or cut off before its index'),
    (r'Failed to measure duration', 'it has no duration: it is a picture, or its metadata are damaged'),
    (r'av_read_frame|avcodec_send_packet|avfilter_graph|Invalid NAL', 'it is damaged or cut off'),
)


class VideoError(ValueError):
    """A video file that cannot be read; the message is one line that names it."""


class NoDecoderError(VideoError):
    """A film whose codec a decoder does not know; another decoder may."""


def reason(error: BaseException) -> str:
    """What a decoder's error means, in one line; the first line of its message where that is not known."""
    text = str(error)
    known = next((meaning for pattern, meaning in MEANINGS if re.search(pattern, text)), '')
    return known or (text.strip().splitlines() or [type(error).__name__])[0][-160:]
