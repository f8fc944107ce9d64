/* Prints the CRC-32 of standard input. */
#include <stdio.h>
#include <zlib.h>

int main(void) {
	unsigned char buf[4096];
	unsigned long sum = crc32(0, NULL, 0);
	size_t n;
	while ((n = fread(buf, 1, sizeof buf, stdin)) > 0)
		sum = crc32(sum, buf, n);
	printf("%08lx\n", sum);
	return 0;
}
