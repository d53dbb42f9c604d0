/* A list of messages in the order of their arrival. The caller guards it. */
#include "router.h"

#include <stdlib.h>
#include <string.h>

void queue_init(struct queue *queue)
{
    queue->head = NULL;
    queue->tail = &queue->head;
}

bool queue_append(struct queue *queue, const struct iovec *parts, int count)
{
    size_t length = 0;
    for (int i = 0; i < count; i++)
        length += parts[i].iov_len;
    struct message *message = malloc(sizeof *message + length);
    if (!message)
        return false;
    message->next = NULL;
    message->admitted = false;
    message->length = 0;
    for (int i = 0; i < count; i++) {
        memcpy(message->bytes + message->length, parts[i].iov_base, parts[i].iov_len);
        message->length += parts[i].iov_len;
    }
    queue_put(queue, message);
    return true;
}

/* One that is in no queue. */
void queue_put(struct queue *queue, struct message *message)
{
    *queue->tail = message;
    queue->tail = &message->next;
}

struct message *queue_take(struct queue *queue)
{
    struct message *first = queue->head;
    if (first && !(queue->head = first->next))
        queue->tail = &queue->head;
    return first;
}

void queue_clear(struct queue *queue)
{
    struct message *message;
    while ((message = queue_take(queue)))
        free(message);
}
