#include "textflag.h"

// func clone(args *cloneArgs, size uintptr) uintptr
//
// As in clone_amd64.s.
TEXT ·clone(SB),NOSPLIT,$48-24
	MOVD args+0(FP), R0
	MOVD size+8(FP), R1
	MOVD $435, R8 // clone3
	SVC
	CBZ  R0, child
	MOVD R0, ret+16(FP)
	RET
child:
	MOVD ZR, R29
	MOVD ZR, R1
	MOVD 40(RSP), R0
next:
	MOVD 32(RSP), R9
	CALL (R9) // R0: program, R1: result of its last clone
	MOVD R0, 40(RSP)
	MOVD 0(R0), R0
	MOVD $88, R1 // sizeof(cloneArgs)
	MOVD $435, R8
	SVC
	MOVD R0, R1
	MOVD 40(RSP), R0
	B    next
