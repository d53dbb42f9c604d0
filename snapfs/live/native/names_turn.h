/* The turn to change names; names_turn.c has the invariants. */
#ifndef SNAPFS_NAMES_TURN_H
#define SNAPFS_NAMES_TURN_H

#include <pthread.h>
#include <stdbool.h>

enum turn_kind { TURN_OF_C, TURN_OF_PYTHON, TURN_KINDS };

struct names_turn {
    pthread_mutex_t lock; /* guards what follows */
    pthread_cond_t is_free[TURN_KINDS];
    bool is_taken;
    enum turn_kind last; /* who has it or had it last */
    unsigned waiting[TURN_KINDS];
};

void names_turn_init(struct names_turn *);
bool names_turn_try(struct names_turn *, enum turn_kind); /* without waiting: whether it was taken */
void names_turn_take(struct names_turn *, enum turn_kind); /* without the GIL */
void names_turn_end(struct names_turn *);
unsigned names_turn_waiting(struct names_turn *, enum turn_kind); /* how many threads */

#endif
