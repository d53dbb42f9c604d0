/* Who has the turn: a thread of C or one of Python. While both wait for it they alternate, so a change of either waits for
 * one change of the other and for those of its own kind that came before. A plain mutex would promise neither: the
 * thread that gives it up may take it again at once, and of those that wait the kernel wakes the device threads first,
 * which have a real-time priority.
 *
 * Invariants:
 * 1. One thread has the turn.
 * 2. None takes it while one of the other kind waits and its own kind had it last.
 *
 * `names_turn.lock` is a leaf (lock_order.h): the turn is waited for without it.
 */
#include "names_turn.h"

void names_turn_init(struct names_turn *turn)
{
    pthread_mutex_init(&turn->lock, NULL);
    for (int i = 0; i < TURN_KINDS; i++)
        pthread_cond_init(&turn->is_free[i], NULL);
}

static bool may_take(const struct names_turn *turn, enum turn_kind kind)
{
    return !turn->is_taken && !(turn->last == kind && turn->waiting[!kind]);
}

static void take(struct names_turn *turn, enum turn_kind kind)
{
    turn->is_taken = true;
    turn->last = kind;
}

bool names_turn_try(struct names_turn *turn, enum turn_kind kind)
{
    pthread_mutex_lock(&turn->lock);
    bool taken = may_take(turn, kind);
    if (taken)
        take(turn, kind);
    pthread_mutex_unlock(&turn->lock);
    return taken;
}

void names_turn_take(struct names_turn *turn, enum turn_kind kind)
{
    pthread_mutex_lock(&turn->lock);
    turn->waiting[kind]++;
    while (!may_take(turn, kind))
        pthread_cond_wait(&turn->is_free[kind], &turn->lock);
    turn->waiting[kind]--;
    take(turn, kind);
    pthread_mutex_unlock(&turn->lock);
}

void names_turn_end(struct names_turn *turn)
{
    pthread_mutex_lock(&turn->lock);
    enum turn_kind next = turn->waiting[!turn->last] ? !turn->last : turn->last;
    turn->is_taken = false;
    pthread_cond_signal(&turn->is_free[next]);
    pthread_mutex_unlock(&turn->lock);
}

unsigned names_turn_waiting(struct names_turn *turn, enum turn_kind kind)
{
    pthread_mutex_lock(&turn->lock);
    unsigned waiting = turn->waiting[kind];
    pthread_mutex_unlock(&turn->lock);
    return waiting;
}
