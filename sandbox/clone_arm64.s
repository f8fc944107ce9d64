#include "textflag.h"

// func clone(args *cloneArgs, size uintptr) uintptr
//
// As in clone_amd64.s, with the link register's place at 0(RSP) below the arguments of interpret.
TEXT ·clone(SB),NOSPLIT,$32-24
	MOVD args+0(FP), R0
	MOVD size+8(FP), R1
	MOVD $435, R8 // clone3
	SVC
	CBZ  R0, child
	MOVD R0, ret+16(FP)
	RET
child:
	MOVD ZR, R29
next:
	MOVD R0, 16(RSP)
	CALL ·interpret(SB)
	MOVD 24(RSP), R9
	MOVD R9, 8(RSP)
	MOVD 0(R9), R0
	MOVD $88, R1 // sizeof(cloneArgs)
	MOVD $435, R8
	SVC
	B    next
