/* GPT-2's alphabet of bytes: each byte is written as one printable character, so that vocabulary
 * files stay readable text. Printable Latin-1 bytes stand for themselves, the other 68 are U+0100
 * and up, in order. Source: encoder.py of the GPT-2 release. */
#ifndef OVERFILL_ENGINE_TOKENIZER_BYTE_ALPHABET_H
#define OVERFILL_ENGINE_TOKENIZER_BYTE_ALPHABET_H

#include <stddef.h>
#include <stdint.h>

/* Writes the character of `byte` to out[2]; returns its length, 1 or 2. */
size_t byte_alphabet_write(uint8_t byte, char *out);
/* The byte that the character s[len] stands for, or -1. */
int byte_alphabet_read(const char *s, size_t len);

#endif
