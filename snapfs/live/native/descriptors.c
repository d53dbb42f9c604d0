/* A bounded cache of open backing files, for all threads: the twin of snapfs/live/backing/descriptors.py.
 *
 * Invariants:
 * 1. At most `limit` descriptors are open here, and as many more as are pinned at the same time.
 * 2. A pinned descriptor is not closed; one that is dropped while pinned is closed when its last pin goes.
 * 3. What was opened before a `drop` is not cached after it: its path may have led to another file.
 * 4. The list runs from the newest use to the oldest, and holds just what the map holds.
 *
 * The lock is a leaf: no system call is made under it. What is to be closed is carried out of it.
 */
#define _GNU_SOURCE
#include "content.h"

#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

static void unlink_file(Descriptors *self, struct open_file *it)
{
    *(it->newer ? &it->newer->older : &self->newest) = it->older;
    *(it->older ? &it->older->newer : &self->oldest) = it->newer;
    it->newer = it->older = NULL;
}

static void link_newest(Descriptors *self, struct open_file *it)
{
    it->older = self->newest;
    *(self->newest ? &self->newest->newer : &self->oldest) = it;
    self->newest = it;
}

/* Take it out of the cache. If it is not pinned, put it in front of `to_close`, a list by `older`. With the lock held.
 * */
static void drop_file(Descriptors *self, struct open_file *it, struct open_file **to_close)
{
    unlink_file(self, it);
    map_remove(&self->open, it->key);
    it->dropped = true;
    if (!it->pins) {
        it->older = *to_close;
        *to_close = it;
    }
}

static void close_all(struct open_file *to_close)
{
    while (to_close) {
        struct open_file *next = to_close->older;
        close(to_close->fd);
        free(to_close);
        to_close = next;
    }
}

static void shrink(Descriptors *self, size_t size, struct open_file **to_close)
{
    while (self->open.count > size)
        drop_file(self, self->oldest, to_close);
}

/* Close all but one in `divisor`; 0: all. */
void descriptors_shrink(Descriptors *self, size_t divisor)
{
    struct open_file *to_close = NULL;
    pthread_mutex_lock(&self->lock);
    shrink(self, divisor ? self->open.count / divisor : 0, &to_close);
    pthread_mutex_unlock(&self->lock);
    close_all(to_close);
}

static int open_path(const char *path, int flags)
{
    int fd = open(path, flags | O_RDWR | O_CLOEXEC | O_NOATIME, 0600);
    if (fd < 0 && errno == EPERM) /* O_NOATIME is for the file's owner */
        fd = open(path, flags | O_RDWR | O_CLOEXEC, 0600);
    return fd < 0 ? -errno : fd;
}

#define PATH_BYTES 4200

static void path_of(const Descriptors *self, uint64_t key, char path[PATH_BYTES])
{
    snprintf(path, PATH_BYTES, "%s/%02x/%llx", self->root, (unsigned)(key & 255), (unsigned long long)key);
}

bool descriptors_has_file(Descriptors *self, uint64_t key)
{
    char path[PATH_BYTES];
    path_of(self, key, path);
    return !access(path, F_OK);
}

int descriptors_stat(Descriptors *self, uint64_t key, unsigned mask, struct statx *found)
{
    char path[PATH_BYTES];
    path_of(self, key, path);
    return statx(AT_FDCWD, path, 0, mask, found);
}

static int open_key(Descriptors *self, uint64_t key, int flags)
{
    char path[PATH_BYTES];
    path_of(self, key, path);
    int fd = open_path(path, flags);
    if (fd == -EMFILE || fd == -ENFILE) {
        descriptors_shrink(self, 2);
        fd = open_path(path, flags);
    }
    return fd;
}

static struct open_file *find(Descriptors *self, uint64_t key)
{
    uint64_t *at = map_find(&self->open, key);
    if (!at)
        return NULL;
    struct open_file *found = (struct open_file *)(uintptr_t)*at;
    if (self->newest != found) {
        unlink_file(self, found);
        link_newest(self, found);
    }
    found->pins++;
    return found;
}

/* Put `made` into the cache. With the lock held. */
static bool put(Descriptors *self, struct open_file *made, struct open_file **to_close)
{
    shrink(self, self->limit - 1, to_close);
    uint64_t *at = map_put(&self->open, made->key);
    if (at) {
        *at = (uint64_t)(uintptr_t)made;
        link_newest(self, made);
    }
    return at != NULL;
}

/* Cache `fd`, which was opened when there had been `drops` drops; pinned. -EAGAIN if it must be opened anew. */
static int insert(Descriptors *self, uint64_t key, int fd, uint64_t drops, struct open_file **out)
{
    struct open_file *to_close = NULL, *made = malloc(sizeof *made);
    int result = made ? 0 : -ENOMEM;
    if (made)
        *made = (struct open_file){.key = key, .fd = fd, .pins = 1};
    pthread_mutex_lock(&self->lock);
    *out = find(self, key);
    if (!*out && made) {
        result = drops != self->drops ? -EAGAIN : put(self, made, &to_close) ? 0 : -ENOMEM;
        *out = result ? NULL : made;
    }
    pthread_mutex_unlock(&self->lock);
    close_all(to_close);
    if (!made || *out != made) {
        close(fd);
        free(made);
    }
    return *out ? 0 : result;
}

int descriptors_open(Descriptors *self, uint64_t key, int flags, struct open_file **out)
{
    for (;;) {
        pthread_mutex_lock(&self->lock);
        *out = flags ? NULL : find(self, key);
        uint64_t drops = self->drops;
        pthread_mutex_unlock(&self->lock);
        if (*out)
            return 0;
        int fd = open_key(self, key, flags);
        if (fd < 0)
            return fd;
        int result = insert(self, key, fd, drops, out);
        if (result != -EAGAIN)
            return result;
    }
}

int descriptors_acquire(Descriptors *self, uint64_t key, struct open_file **out)
{
    return descriptors_open(self, key, 0, out);
}

void descriptors_release(Descriptors *self, struct open_file *it)
{
    pthread_mutex_lock(&self->lock);
    bool last = !--it->pins && it->dropped;
    pthread_mutex_unlock(&self->lock);
    if (last) {
        it->older = NULL;
        close_all(it);
    }
}

void descriptors_drop(Descriptors *self, uint64_t key)
{
    struct open_file *to_close = NULL;
    pthread_mutex_lock(&self->lock);
    uint64_t *at = map_find(&self->open, key);
    if (at)
        drop_file(self, (struct open_file *)(uintptr_t)*at, &to_close);
    self->drops++;
    pthread_mutex_unlock(&self->lock);
    close_all(to_close);
}
