/* Counts the instructions that sharnn-kernels/examples/instructions.rs executes between two of its marks, for 64-bit ARM in QEMU.

   It needs `rustup target add aarch64-unknown-linux-gnu` and, of Debian 12, gcc-aarch64-linux-gnu, libc6-dev-arm64-cross and qemu-user (7.2):
   the statically linked QEMU has no plugins.

       gcc -O2 -shared -fPIC -o instructions.so scripts/platforms/instructions.c
       export CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_LINKER=aarch64-linux-gnu-gcc
       cargo build --release -p sharnn-kernels --example instructions --target aarch64-unknown-linux-gnu
       for cpu in max,sve=off,pauth-impdef=on neoverse-n1 cortex-a57; do
           qemu-aarch64 -cpu $cpu -L /usr/aarch64-linux-gnu -plugin ./instructions.so \
               target/aarch64-unknown-linux-gnu/release/examples/instructions
       done

   SHARNN_ISA=portable counts plain Rust. The plugin interface, version 1, is declared here, as Debian has no header of it. */
#include <inttypes.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

#define EXPORT __attribute__((visibility("default")))

typedef uint64_t qemu_plugin_id_t;
typedef struct qemu_info_t qemu_info_t;
struct qemu_plugin_tb;
struct qemu_plugin_insn;
enum qemu_plugin_op { QEMU_PLUGIN_INLINE_ADD_U64 };
typedef void (*translated_t)(qemu_plugin_id_t, struct qemu_plugin_tb *);
typedef void (*called_t)(qemu_plugin_id_t, unsigned, int64_t, uint64_t, uint64_t, uint64_t, uint64_t, uint64_t, uint64_t, uint64_t, uint64_t);

void qemu_plugin_register_vcpu_tb_trans_cb(qemu_plugin_id_t, translated_t);
void qemu_plugin_register_vcpu_syscall_cb(qemu_plugin_id_t, called_t);
size_t qemu_plugin_tb_n_insns(const struct qemu_plugin_tb *);
struct qemu_plugin_insn *qemu_plugin_tb_get_insn(const struct qemu_plugin_tb *, size_t);
void qemu_plugin_register_vcpu_insn_exec_inline(struct qemu_plugin_insn *, enum qemu_plugin_op, void *, uint64_t);

EXPORT int qemu_plugin_version = 1;

/* getpriority(PRIO_PROCESS, mark), by its number on 64-bit ARM. */
enum { GETPRIORITY = 141, BEGIN = 7001, END = 7002 };

static uint64_t count;

static void translated(qemu_plugin_id_t id, struct qemu_plugin_tb *block)
{
    size_t n = qemu_plugin_tb_n_insns(block);
    for (size_t i = 0; i < n; i++) {
        struct qemu_plugin_insn *instruction = qemu_plugin_tb_get_insn(block, i);
        qemu_plugin_register_vcpu_insn_exec_inline(instruction, QEMU_PLUGIN_INLINE_ADD_U64, &count, 1);
    }
}

static void called(qemu_plugin_id_t id, unsigned cpu, int64_t number, uint64_t which, uint64_t mark,
                   uint64_t c, uint64_t d, uint64_t e, uint64_t f, uint64_t g, uint64_t h)
{
    if (number != GETPRIORITY)
        return;
    if (mark == BEGIN)
        count = 0;
    else if (mark == END)
        fprintf(stderr, "    %" PRIu64 " instructions\n", count);
}

EXPORT int qemu_plugin_install(qemu_plugin_id_t id, const qemu_info_t *info, int argc, char **argv)
{
    qemu_plugin_register_vcpu_tb_trans_cb(id, translated);
    qemu_plugin_register_vcpu_syscall_cb(id, called);
    return 0;
}
