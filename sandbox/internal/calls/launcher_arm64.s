#include "go_asm.h"
#include "textflag.h"

// As in launcher_amd64.s.
TEXT ·launcherText(SB),NOSPLIT|NOFRAME,$0-0
	MOVD $62, R8 // lseek
	MOVD $3, R0
	MOVD ZR, R1
	MOVD $2, R2 // SEEK_END
	SVC
	CMP  $0, R0
	BLE  exit
	MOVD R0, R1
	MOVD $222, R8 // mmap
	MOVD $const_launcherArena, R0
	MOVD $3, R2 // PROT_READ | PROT_WRITE
	MOVD $0x11, R3 // MAP_SHARED | MAP_FIXED
	MOVD $3, R4
	MOVD ZR, R5
	SVC
	MOVD $const_launcherArena, R19
	CMP  R19, R0
	BNE  exit
next:
	// R19 is the program, R20 its pc, R21 the call.
	MOVD program_pc(R19), R20
	MOVD program_n(R19), R9
	CMP  R9, R20
	BHS  exit
	MOVD $rawCall__size, R9
	MUL  R9, R20, R21
	MOVD program_calls(R19), R9
	ADD  R9, R21
	ADD  R19, R21
	MOVD rawCall_nr(R21), R8
	MOVD (rawCall_args+0)(R21), R0
	MOVD (rawCall_args+8)(R21), R1
	MOVD (rawCall_args+16)(R21), R2
	MOVD (rawCall_args+24)(R21), R3
	MOVD (rawCall_args+32)(R21), R4
	MOVD (rawCall_args+40)(R21), R5
	SVC
	MOVD program_results(R19), R9
	ADD  R19, R9
	MOVD R0, (R9)(R20<<3)
	ADD  $1, R20
	CMN  $4095, R0
	BHS  error
	MOVD R20, program_pc(R19)
	B    next
error:
	NEG  R0, R0
	CMP  $64, R0
	BHS  fail
	MOVD rawCall_tolerate(R21), R9
	LSR  R0, R9, R9
	TBZ  $0, R9, fail
	MOVD rawCall_skip(R21), R9
	ADD  R9, R20
	MOVD R20, program_pc(R19)
	B    next
fail:
	MOVD R0, program_errno(R19)
	MOVD R20, program_failed(R19)
exit:
	MOVD $94, R8 // exit_group
	MOVD $127, R0
	SVC
	B    exit

TEXT ·launcherEnd(SB),NOSPLIT|NOFRAME,$0-0
	RET

DATA ·launcherBounds+0(SB)/8, $·launcherText(SB)
DATA ·launcherBounds+8(SB)/8, $·launcherEnd(SB)
GLOBL ·launcherBounds(SB), RODATA, $16
