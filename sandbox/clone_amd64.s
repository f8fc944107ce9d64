#include "textflag.h"

// func clone(args *cloneArgs, size uintptr) uintptr
//
// The new process starts on the stack that args name. There is a *program at 0(SP) and a zero at 8(SP), the arguments of
// interpret. interpret returns its program when it wants to clone in turn, with the address of the cloneArgs in the
// program's first word; the old process goes on with its program and the result, the new one with what is on its stack.
TEXT ·clone(SB),NOSPLIT,$24-24
	MOVQ args+0(FP), DI
	MOVQ size+8(FP), SI
	MOVQ $435, AX // clone3
	SYSCALL
	TESTQ AX, AX
	JEQ  child
	MOVQ AX, ret+16(FP)
	RET
child:
	XORL BP, BP
next:
	MOVQ AX, 8(SP)
	CALL ·interpret(SB)
	MOVQ 16(SP), R12
	MOVQ R12, 0(SP)
	MOVQ 0(R12), DI
	MOVQ $88, SI // sizeof(cloneArgs)
	MOVQ $435, AX
	SYSCALL
	JMP  next
