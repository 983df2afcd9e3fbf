"""Make the sound for a picture (V2A): any video, of any length.

Writes sample_00000_INPUT.mp4 with the original picture, copied, or .mkv where mp4 cannot hold it, and beside it the
generated sound as sample_00000_INPUT.wav.
"""

import cli
import conditional


def parse(argv=None):
    return conditional.parse(__doc__, "picture", argv)


def main(argv=None):
    conditional.sample(parse(argv), "picture")


if __name__ == "__main__":
    cli.run(main)
