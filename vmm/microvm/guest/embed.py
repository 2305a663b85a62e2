# SPDX-License-Identifier: Apache-2.0
"""Turns the flat guest image into a C array: embed.py IMAGE OUTPUT."""
import sys

with open(sys.argv[1], "rb") as image:
    data = image.read()
with open(sys.argv[2], "w") as out:
    out.write("/* SPDX-License-Identifier: Apache-2.0 */\n")
    out.write('#include "vmm/microvm/image.h"\n')
    out.write("const uint8_t image_bytes[] = {\n")
    for start in range(0, len(data), 16):
        out.write("\t" + ", ".join(str(byte) for byte in data[start:start + 16]) + ",\n")
    out.write("};\n")
    out.write("const size_t image_size = sizeof image_bytes;\n")
