#include "textflag.h"

// func clone(args *cloneArgs, size uintptr) uintptr
//
// The new process starts on the stack that args name. At 32(SP) is the address of interpret and at 40(SP) its program. The
// call is in Go's register convention, to which a call by name would go through a wrapper that the race detector fills with
// code that must not run here. interpret returns its program when it wants to clone in turn; the address of the cloneArgs is
// in the program's first word. The old process goes on with its program and the result, the new one with what is on its
// own stack.
TEXT ·clone(SB),NOSPLIT,$48-24
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
	XORL BX, BX
	MOVQ 40(SP), AX
next:
	XORPS X15, X15
	MOVQ 32(SP), R12
	CALL R12 // AX: program, BX: result of its last clone
	MOVQ AX, 40(SP)
	MOVQ 0(AX), DI
	MOVQ $88, SI // sizeof(cloneArgs)
	MOVQ $435, AX
	SYSCALL
	MOVQ AX, BX
	MOVQ 40(SP), AX
	JMP  next
