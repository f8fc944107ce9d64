#include "go_asm.h"
#include "textflag.h"

// The launcher's text, see launcher.go. It is copied into a file, so it must not refer to any symbol.
TEXT ·launcherText(SB),NOSPLIT|NOFRAME,$0-0
	// Map the arena, which is descriptor 3, at its address.
	MOVL $8, AX // lseek
	MOVL $3, DI
	XORL SI, SI
	MOVL $2, DX // SEEK_END
	SYSCALL
	TESTQ AX, AX
	JLE  exit
	MOVQ AX, SI
	MOVL $9, AX // mmap
	MOVQ $const_launcherArena, DI
	MOVL $3, DX // PROT_READ | PROT_WRITE
	MOVL $0x11, R10 // MAP_SHARED | MAP_FIXED
	MOVL $3, R8
	XORL R9, R9
	SYSCALL
	MOVQ $const_launcherArena, BX
	CMPQ AX, BX
	JNE  exit
next:
	// R12 is the call, BX the program.
	MOVQ program_pc(BX), R12
	CMPQ R12, program_n(BX)
	JAE  exit
	IMULQ $rawCall__size, R12
	ADDQ program_calls(BX), R12
	ADDQ BX, R12
	MOVQ rawCall_nr(R12), AX
	MOVQ (rawCall_args+0)(R12), DI
	MOVQ (rawCall_args+8)(R12), SI
	MOVQ (rawCall_args+16)(R12), DX
	MOVQ (rawCall_args+24)(R12), R10
	MOVQ (rawCall_args+32)(R12), R8
	MOVQ (rawCall_args+40)(R12), R9
	SYSCALL
	MOVQ program_pc(BX), CX
	MOVQ program_results(BX), DX
	ADDQ BX, DX
	MOVQ AX, (DX)(CX*8)
	INCQ CX
	CMPQ AX, $-4095
	JCC  error
	MOVQ CX, program_pc(BX)
	JMP  next
error:
	NEGQ AX
	CMPQ AX, $64
	JCC  fail
	MOVQ rawCall_tolerate(R12), DX
	BTQ  AX, DX
	JCC  fail
	ADDQ rawCall_skip(R12), CX
	MOVQ CX, program_pc(BX)
	JMP  next
fail:
	MOVQ AX, program_errno(BX)
	MOVQ CX, program_failed(BX)
exit:
	MOVL $231, AX // exit_group
	MOVL $127, DI
	SYSCALL
	JMP  exit

TEXT ·launcherEnd(SB),NOSPLIT|NOFRAME,$0-0
	RET

DATA ·launcherBounds+0(SB)/8, $·launcherText(SB)
DATA ·launcherBounds+8(SB)/8, $·launcherEnd(SB)
GLOBL ·launcherBounds(SB), RODATA, $16
