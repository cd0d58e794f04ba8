# What the processor calls. Faults: the frame goes to Rust, which never returns. Interrupts: every
# register that code may hold is saved, the extended state by XSAVE (FXSAVE without it), because
# the interrupted code may use what CPUID told it about.

.section .text.segue_vectors, "ax", @progbits
.code64

.macro FAULT vector, has_error
fault_\vector:
.if \has_error == 0
        pushq   $0
.endif
        pushq   $\vector
        jmp     fault_common
.endm

        FAULT 0, 0
        FAULT 1, 0
        FAULT 3, 0
        FAULT 4, 0
        FAULT 5, 0
        FAULT 6, 0
        FAULT 7, 0
        FAULT 8, 1
        FAULT 9, 0
        FAULT 10, 1
        FAULT 11, 1
        FAULT 12, 1
        FAULT 13, 1
        FAULT 14, 1
        FAULT 15, 0
        FAULT 16, 0
        FAULT 17, 1
        FAULT 18, 0
        FAULT 19, 0
        FAULT 20, 0
        FAULT 21, 1
        FAULT 22, 0
        FAULT 23, 0
        FAULT 24, 0
        FAULT 25, 0
        FAULT 26, 0
        FAULT 27, 0
        FAULT 28, 0
        FAULT 29, 1
        FAULT 30, 1
        FAULT 31, 0

# NMI: this image has no use for one; somebody tried it (`xl trigger ID nmi`).
fault_2:
        iretq

# Builds a fault::Frame on the stack.
fault_common:
        cld
        pushq   %rax
        pushq   %rbx
        pushq   %rcx
        pushq   %rdx
        pushq   %rsi
        pushq   %rdi
        pushq   %rbp
        pushq   %r8
        pushq   %r9
        pushq   %r10
        pushq   %r11
        pushq   %r12
        pushq   %r13
        pushq   %r14
        pushq   %r15
        movq    %cr2, %rax
        pushq   %rax
        movq    %rsp, %rdi
        andq    $-16, %rsp
        call    {fault}
        ud2

.macro INTERRUPT name, handler
.globl \name
\name:
        testl   $0x200, 16(%rsp)        # RFLAGS.IF
        jz      5f
        cld
        pushq   %rbp
        movq    %rsp, %rbp
        pushq   %rax
        pushq   %rbx
        pushq   %rcx
        pushq   %rdx
        pushq   %rsi
        pushq   %rdi
        pushq   %r8
        pushq   %r9
        pushq   %r10
        pushq   %r11
        pushq   %r12
        movq    %rsp, %rbx
        subq    SEGUE_XSAVE_SIZE(%rip), %rsp
        andq    $-64, %rsp
        movq    SEGUE_USE_XSAVE(%rip), %r12
        testq   %r12, %r12
        jz      1f
        xorl    %eax, %eax              # the XSAVE header has to be zero
        movq    %rax, 512(%rsp)
        movq    %rax, 520(%rsp)
        movq    %rax, 528(%rsp)
        movq    %rax, 536(%rsp)
        movq    %rax, 544(%rsp)
        movq    %rax, 552(%rsp)
        movq    %rax, 560(%rsp)
        movq    %rax, 568(%rsp)
        decl    %eax
        movl    %eax, %edx
        xsave64 (%rsp)
        jmp     2f
1:      fxsave64 (%rsp)
2:      call    \handler
        testq   %r12, %r12
        jz      3f
        movl    $-1, %eax
        movl    %eax, %edx
        xrstor64 (%rsp)
        jmp     4f
3:      fxrstor64 (%rsp)
4:      movq    %rbx, %rsp
        leaq    segue_sleep_hlt(%rip), %rax
        cmpq    %rax, 8(%rbp)           # the interrupted instruction
        jne     6f
        incq    8(%rbp)
6:      popq    %r12
        popq    %r11
        popq    %r10
        popq    %r9
        popq    %r8
        popq    %rdi
        popq    %rsi
        popq    %rdx
        popq    %rcx
        popq    %rbx
        popq    %rax
        popq    %rbp
        iretq
        # None can come while interrupts are off. QEMU's emulated SVM delivers one again, as if it
        # were an exception, when its thread is kicked just after Xen injected it.
5:      lock incq SEGUE_REPEATED(%rip)
        iretq
.endm

INTERRUPT segue_upcall_stub, {upcall}
INTERRUPT segue_park_stub, {park}

# Interrupts on, HLT until one comes, and off again. STI promises that none comes between the two,
# but a hypervisor that leaves the guest there may forget that (QEMU's VMRUN does). Then what was
# waited for has come before HLT: the stubs above pass over it.
.globl segue_sleep
segue_sleep:
        sti
segue_sleep_hlt:
        hlt
        cli
        ret

.globl segue_spurious_stub
segue_spurious_stub:
        iretq

.section .data.rel.ro.segue_fault_stubs, "aw", @progbits
        .balign 8
.globl segue_fault_stubs
segue_fault_stubs:
        .irp v, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 29, 30, 31
        .quad   fault_\v
        .endr
