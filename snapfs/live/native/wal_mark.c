/* The high-water mark of the namespace's log while C commits as well: the twin of `HighWaterMark._write` and of
 * `WalFiles.position`; snapfs/live/database/high_water_mark.py has the theory and the layout.
 *
 * Both files are mapped by Python, which lends the mappings (`names_share`) and takes them back at the end. The
 * mark's lock is a leaf.
 */
#include "content.h"

#include <stddef.h>
#include <string.h>

#define SLOT_BYTES 512
#define STATE_OPEN 1

struct __attribute__((packed)) slot {
    char magic[8];
    uint16_t version, state;
    uint64_t turn;
    unsigned char boot[16];
    struct wal_position committed, synced;
    uint32_t checksum;
};

static uint32_t crc32_of(const unsigned char *bytes, size_t length)
{
    uint32_t crc = ~0u;
    while (length--) {
        crc ^= *bytes++;
        for (int bit = 0; bit < 8; bit++)
            crc = crc >> 1 ^ (0xedb88320u & -(crc & 1));
    }
    return ~crc;
}

static uint32_t big_endian(const unsigned char *at)
{
    return (uint32_t)at[0] << 24 | (uint32_t)at[1] << 16 | (uint32_t)at[2] << 8 | at[3];
}

/* The end of the log: fields mxFrame and aSalt of the wal-index. Between two transactions. */
struct wal_position wal_mark_position(const struct wal_mark *mark)
{
    struct wal_position position = {big_endian(mark->index + 32), big_endian(mark->index + 36), 0};
    memcpy(&position.frames, mark->index + 16, sizeof position.frames);
    return position;
}

/* With the lock held. */
static void write_slot(struct wal_mark *mark, unsigned state)
{
    struct slot slot = {.version = 1, .state = (uint16_t)state, .turn = ++mark->turn};
    memcpy(slot.magic, "snapMARK", sizeof slot.magic);
    memcpy(slot.boot, mark->boot, sizeof slot.boot);
    slot.committed = mark->committed;
    slot.synced = mark->synced;
    slot.checksum = crc32_of((const unsigned char *)&slot, offsetof(struct slot, checksum));
    memcpy(mark->slots + (slot.turn & 1) * SLOT_BYTES, &slot, sizeof slot);
}

/* A transaction is in the log, and not answered yet. */
void wal_mark_committed(struct wal_mark *mark)
{
    pthread_mutex_lock(&mark->lock);
    mark->committed = wal_mark_position(mark);
    write_slot(mark, STATE_OPEN);
    pthread_mutex_unlock(&mark->lock);
}

/* Claims of Python: what the log has of a flush. */
void wal_mark_synced(struct wal_mark *mark, struct wal_position synced)
{
    pthread_mutex_lock(&mark->lock);
    mark->synced = synced;
    write_slot(mark, STATE_OPEN);
    pthread_mutex_unlock(&mark->lock);
}
