/* What preserve.c and its methods for Python (frozen_type.c) share. */
#ifndef SNAPFS_PRESERVE_H
#define SNAPFS_PRESERVE_H

#include "content.h"

#define KEPT(state) ((state) & 0xffffull)
#define CONSUMED (1ull << 16)
#define LOST (1ull << 17)
#define ERRNO_SHIFT 18
#define LOST_ERRNO(state) ((int)((state) >> ERRNO_SHIFT & 0x3ff))
#define SLOT_SHIFT 28
#define SLOT(state) ((state) >> SLOT_SHIFT)

int slot_file_claim(SlotFile *, uint64_t *slot); /* 0 or -errno, as all here */
int slot_file_write(SlotFile *, const void *data, size_t length, uint64_t offset); /* or RAISED */
int slot_file_read(SlotFile *, unsigned char *data, size_t length, uint64_t offset);
uint64_t frozen_pending(Frozen *, uint64_t offset, uint64_t limit);
int frozen_overlay(Frozen *, unsigned char *data, size_t length, uint64_t state);
int frozen_consume(Frozen *, int fd, PyObject *path, uint64_t chunk, unsigned char *data, size_t length);

#endif
