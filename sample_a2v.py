"""Make the picture for a sound (A2V): wav, mp3, flac, m4a or any video, of any length.

Writes sample_00000_INPUT.mp4 with the original sound, copied, or .mkv where mp4 cannot hold it, and beside it the sound
at the model's rate as sample_00000_INPUT.wav.
"""

import cli
import conditional


def parse(argv=None):
    return conditional.parse(__doc__, "sound", argv)


def main(argv=None):
    conditional.sample(parse(argv), "sound")


if __name__ == "__main__":
    cli.run(main)
