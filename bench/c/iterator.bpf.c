/*
 * The peer of the kernel engine: BPF iterators written in C, which write the same messages
 * with BASE, and with BASE and STAT, of every process.
 *
 * They are compiled against the types of the running kernel, so every offset is a constant.
 * They are for the initial pid namespace only.
 */
#include "vmlinux.h"
#include <bpf/bpf_helpers.h>

char _license[] SEC("license") = "Dual MIT/GPL";

#define TICK 10000000 /* nanoseconds; USER_HZ is 100 */

struct bpf_iter_task;
extern int bpf_iter_task_new(struct bpf_iter_task *, struct task_struct *, unsigned int) __ksym __weak;
extern struct task_struct *bpf_iter_task_next(struct bpf_iter_task *) __ksym __weak;
extern void bpf_iter_task_destroy(struct bpf_iter_task *) __ksym __weak;

struct message {
	__u32 len;
	__u16 type, flags;
	__u32 seq, port, pid, tgid, task_flags;
};

struct base {
	__u16 len, type;
	__u32 tgid, pid, ppid, tpid, sid, pgid;
	__u8 state;
	char comm[16];
	__u8 pad[3];
};

struct times {
	__u64 minflt, cminflt, majflt, cmajflt, utime, stime, cutime, cstime;
	__u32 threads, pad;
};

static __always_inline __u32 state_of(struct task_struct *task)
{
	__u32 state = task->__state, both = (state | task->exit_state) & 0x7f;

	if (state & 0x9000) /* TASK_RTLOCK_WAIT, TASK_FROZEN */
		both = 2;
	else if ((state & 0x402) == 0x402) /* TASK_IDLE */
		both = 0x80;
	return both & 0x80 ? 8 : both & 0x40 ? 7 : both & 0x20 ? 6 : both & 0x10 ? 5 :
	       both & 8 ? 4 : both & 4 ? 3 : both & 2 ? 2 : both & 1;
}

static __always_inline __u32 nr(struct pid *pid)
{
	return pid->numbers[0].nr;
}

static __always_inline int fill_base(struct message *m, struct base *b, struct task_struct *task)
{
	struct signal_struct *signal = task->signal;

	m->type = 0xd101;
	m->flags = 2;
	m->seq = m->port = m->task_flags = 0;
	b->len = sizeof *b;
	b->type = 0;
	b->ppid = nr(task->real_parent->signal->pids[PIDTYPE_TGID]);
	b->tpid = task->ptrace ? nr(task->parent->thread_pid) : 0;
	b->sid = nr(signal->pids[PIDTYPE_SID]);
	b->pgid = nr(signal->pids[PIDTYPE_PGID]);
	b->state = state_of(task);
	__builtin_memcpy(b->comm, task->comm, 16);
	b->pad[0] = b->pad[1] = b->pad[2] = 0;
	m->pid = b->pid = nr(task->thread_pid);
	m->tgid = b->tgid = nr(signal->pids[PIDTYPE_TGID]);
	return m->pid && m->tgid;
}

/* stime * rtime / (stime + utime) in 128 bits: mul_u64_u64_div_u64(). */
static __noinline __u64 mul_div(__u64 a, __u64 b, __u64 c)
{
	__u64 low = (__u32)a * (__u64)(__u32)b, high = (a >> 32) * (b >> 32);
	__u64 mid1 = (a >> 32) * (__u32)b, mid2 = (b >> 32) * (__u64)(__u32)a, carry;

	if (!c)
		return 0;
	carry = (low >> 32) + (__u32)mid1 + (__u32)mid2;
	high += (mid1 >> 32) + (mid2 >> 32) + (carry >> 32);
	low = a * b;
	if (!high)
		return low / c;
	for (int i = 0; i < 64; i++) { /* never for times below 50 days */
		__u64 top = high >> 63;
		high = high << 1 | low >> 63;
		low <<= 1;
		if (top || high >= c) {
			high -= c;
			low++;
		}
	}
	return low;
}

static __always_inline void fill_stat(struct times *s, struct task_struct *task)
{
	struct signal_struct *signal = task->signal;
	__u64 minflt = signal->min_flt, majflt = signal->maj_flt;
	__u64 utime = signal->utime, stime = signal->stime, rtime = signal->sum_sched_runtime;
	__u64 put = signal->prev_cputime.utime, pst = signal->prev_cputime.stime;

	if (signal->nr_threads == 1) {
		minflt += task->min_flt;
		majflt += task->maj_flt;
		utime += task->utime;
		stime += task->stime;
		rtime += task->se.sum_exec_runtime;
	} else {
		struct bpf_iter_task it;
		struct task_struct *thread;

		bpf_iter_task_new(&it, task, 2 /* BPF_TASK_ITER_PROC_THREADS */);
		while ((thread = bpf_iter_task_next(&it))) {
			minflt += thread->min_flt;
			majflt += thread->maj_flt;
			utime += thread->utime;
			stime += thread->stime;
			rtime += thread->se.sum_exec_runtime;
		}
		bpf_iter_task_destroy(&it);
	}
	/* cputime_adjust() */
	if (pst + put >= rtime) {
		stime = pst;
		utime = put;
	} else {
		if (stime)
			stime = utime ? mul_div(stime, rtime, stime + utime) : rtime;
		if (stime < pst)
			stime = pst;
		utime = rtime - stime;
		if (utime < put) {
			utime = put;
			stime = rtime - utime;
		}
	}
	s->minflt = minflt;
	s->cminflt = signal->cmin_flt;
	s->majflt = majflt;
	s->cmajflt = signal->cmaj_flt;
	s->utime = utime / TICK;
	s->stime = stime / TICK;
	s->cutime = signal->cutime / TICK;
	s->cstime = signal->cstime / TICK;
	s->threads = signal->nr_threads;
	s->pad = 0;
}

SEC("iter/task")
int base(struct bpf_iter__task *ctx)
{
	struct task_struct *task = ctx->task;
	struct { struct message m; struct base b; } out;

	if (!task || task->pid != task->tgid)
		return 0;
	out.m.len = sizeof out;
	if (fill_base(&out.m, &out.b, task))
		bpf_seq_write(ctx->meta->seq, &out, sizeof out);
	return 0;
}

SEC("iter/task")
int base_stat(struct bpf_iter__task *ctx)
{
	struct task_struct *task = ctx->task;
	struct { struct message m; struct base b; __u16 len, type; struct times s; } out;

	if (!task || task->pid != task->tgid)
		return 0;
	out.m.len = sizeof out;
	out.len = 4 + sizeof out.s;
	out.type = 4;
	fill_stat(&out.s, task);
	if (fill_base(&out.m, &out.b, task))
		bpf_seq_write(ctx->meta->seq, &out, sizeof out);
	return 0;
}
