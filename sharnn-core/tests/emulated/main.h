// The program: `emulated INPUT OUTPUT` runs the cases that INPUT names.
//
// INPUT is a sequence of: the case's number, seq_len, the block that is to stall (all ones: none), the word `raised`, and what run() in
// case.h reads. All values have 32 bits, in the machine's own order.

int main(int argc, char** argv) {
    if (argc != 3) {
        emulated::fail("wants two arguments: INPUT OUTPUT");
    }
    std::FILE* in = std::fopen(argv[1], "rb");
    std::FILE* out = std::fopen(argv[2], "wb");
    if (in == nullptr || out == nullptr) {
        emulated::fail("can't open its files");
    }
    unsigned head[4];
    unsigned seed = 1;
    while (std::fread(head, 4, 4, in) == 4) {
        if (head[0] >= sizeof(CASES) / sizeof(CASES[0])) {
            emulated::fail("no such case");
        }
        emulated::stalled = head[2];
        const emulated::Case& its = *CASES[head[0]];
        its.run(its, head[1], head[3], seed++, in, out);
    }
    if (std::fclose(out) != 0) {
        emulated::fail("can't write");
    }
}
