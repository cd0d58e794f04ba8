# The park pages' code. It belongs to neither image while a switch is on: copied as one page by the
# image that starts the switch, position-independent, on page tables, GDT, IDT, TSS and stacks of
# the park pages. Offsets of the data come from the structures in park.rs.
#
# Three ways in: park (a vCPU that waits), try (the vCPU that runs the trial), the gates (whatever
# the trial runs into). Two ways out: back into the old image, or into the new one.

.section .park, "a", @progbits
.code64
park_base:

# One gate each 16 bytes: the vector, after a 0 where the processor pushes no error code.
.set v, 0
.rept 32
        .balign 16, 0xcc
.if (v == 8) || (v == 10) || (v == 11) || (v == 12) || (v == 13) || (v == 14) || (v == 17) || (v == 21) || (v == 29) || (v == 30)
.else
        pushq   $0
.endif
        pushq   $v
        jmp     gate
.set v, v + 1
.endr
        .org 512, 0xcc

# Fixed entries, for the Rust side: offsets 512, 528, 544.
        jmp     park
        .balign 16, 0xcc
        jmp     try
        .balign 16, 0xcc
        jmp     reset

# Loads the park pages' GDT, IDT, TR. In: R12 = control,
# R13 = slot. Uses the stack for one far return.
.macro LOAD_TABLES
        lgdt    park_base + {tables} + {t_gdtr}(%rip)
        lidt    park_base + {tables} + {t_idtr}(%rip)
        movl    ${sel_data}, %eax
        movl    %eax, %ds
        movl    %eax, %es
        movl    %eax, %ss
        pushq   ${sel_code}
        leaq    9f(%rip), %rax
        pushq   %rax
        lretq
9:      movl    {s_selector}(%r13), %ecx
        andl    $~7, %ecx
        leaq    park_base + {tables} + {t_gdt}(%rip), %rax
        andb    $~2, 5(%rax,%rcx)       # TSS descriptor: not busy
        ltr     %cx
.endm

.macro HYPERCALL
        cmpl    $0, {c_use_vmmcall}(%r12)
        je      8f
        vmmcall
        jmp     7f
8:      vmcall
7:
.endm

# park(RDI = control, RSI = slot): returns on resume; on commit the vCPU goes to the new image.
park:
        pushq   %rbp
        pushq   %rbx
        pushq   %r12
        pushq   %r13
        pushq   %r14
        pushq   %r15
        movq    %rdi, %r12
        movq    %rsi, %r13
        movq    %rsp, {s_rsp}(%r13)
        movq    %cr3, %rax
        movq    %rax, {s_cr3}(%r13)
        movq    park_base + {tables} + {t_cr3}(%rip), %rax
        movq    %rax, %cr3
        movq    {s_stack}(%r13), %rsp
        LOAD_TABLES
        movl    ${state_parked}, {s_state}(%r13)

        # Spin a little: most switches are over soon.
        rdtsc
        shlq    $32, %rdx
        orq     %rax, %rdx
        addq    {c_spin_tsc}(%r12), %rdx
        movq    %rdx, %r14
1:      cmpl    $0, {c_release}(%r12)
        jne     released
        pause
        rdtsc
        shlq    $32, %rdx
        orq     %rdx, %rax
        cmpq    %r14, %rax
        jb      1b

        # Then sleep in the hypervisor, on a masked port; it may wake early.
sleep:  movl    $29, %eax               # sched_op
        movl    $3, %edi                # SCHEDOP_poll
        leaq    {s_poll}(%r13), %rsi
        HYPERCALL
        cmpl    $0, {c_release}(%r12)
        jne     released
        movl    {s_selector}(%r13), %eax
        cmpl    %eax, {c_watcher}(%r12)
        jne     sleep

        # The watcher: is the trial's time over?
        movq    {c_deadline_tsc}(%r12), %r14
        testq   %r14, %r14
        jz      sleep
        rdtsc
        shlq    $32, %rdx
        orq     %rdx, %rax
        cmpq    %r14, %rax
        jb      sleep
        movl    ${verdict_pending}, %eax
        movl    ${verdict_hung}, %ecx
        lock cmpxchgl %ecx, {c_verdict}(%r12)
        jne     sleep

        # By NMI: whatever the trial does with its interrupt flag.
        movl    $24, %eax               # vcpu_op
        movl    $11, %edi               # VCPUOP_send_nmi
        movl    {c_trial_vcpu}(%r12), %esi
        xorl    %edx, %edx
        testl   ${fault_no_nmi}, {c_test}(%r12)
        jnz     3f
        HYPERCALL
3:      rdtsc
        shlq    $32, %rdx
        orq     %rax, %rdx
        addq    {c_grace_tsc}(%r12), %rdx
        movq    %rdx, %r14
4:      cmpl    ${taken_open}, {c_taken}(%r12)
        jne     sleep
        pause
        rdtsc
        shlq    $32, %rdx
        orq     %rdx, %rax
        cmpq    %r14, %rax
        jb      4b
        # Then by INIT and the SIPI page; once, and only if the NMI does not come first after all.
        movl    ${taken_open}, %eax
        movl    ${taken_init}, %ecx
        lock cmpxchgl %ecx, {c_taken}(%r12)
        jne     sleep
        movl    ${x2apic_icr}, %ecx
        movl    {c_trial_apic}(%r12), %edx
        movl    $0x4500, %eax           # INIT, assert
        wrmsr
        movl    {c_trial_apic}(%r12), %edx
        movl    {c_sipi_page}(%r12), %eax
        orl     $0x4600, %eax           # start-up, assert
        wrmsr
5:      cmpl    ${taken_ours}, {c_taken}(%r12)
        je      sleep
        pause
        jmp     5b

released:
        cmpl    ${release_commit}, {c_release}(%r12)
        je      5f
        movq    {s_cr3}(%r13), %rax
        movq    %rax, %cr3
        movq    {s_rsp}(%r13), %rsp
        popq    %r15
        popq    %r14
        popq    %r13
        popq    %r12
        popq    %rbx
        popq    %rbp
        ret
5:      movq    {c_new_entry}(%r12), %rax
        movq    {c_new_cr3}(%r12), %rcx
        movq    {s_new_stack}(%r13), %rsp
        movl    {s_selector}(%r13), %edi
        subl    ${sel_tss}, %edi
        shrl    $4, %edi                # argument: the vCPU's number
        xorl    %ebp, %ebp
        movq    %rcx, %cr3
        jmpq    *%rax

# try(RDI = control, RSI = slot, RDX = the trial's CR3, RCX = entry, R8 = its stack, R9 = argument):
# returns when the trial has ended without a commit, with everything as it was; EAX = verdict.
try:
        pushq   %rbp
        pushq   %rbx
        pushq   %r12
        pushq   %r13
        pushq   %r14
        pushq   %r15
        subq    $8, %rsp
        stmxcsr (%rsp)
        fnstcw  4(%rsp)
        movq    %rdi, %r12
        movq    %rsi, %r13
        movq    %rdx, %r14
        movq    %rcx, %r15
        movq    %rsp, {s_rsp}(%r13)
        movq    %cr3, %rax
        movq    %rax, {s_cr3}(%r13)
        movq    %cr0, %rax
        movq    %rax, {c_cr0}(%r12)
        movq    %cr4, %rax
        movq    %rax, {c_cr4}(%r12)
        LOAD_TABLES
        rdtsc
        shlq    $32, %rdx
        orq     %rax, %rdx
        addq    {c_budget_tsc}(%r12), %rdx
        movq    %rdx, {c_deadline_tsc}(%r12)
        movq    %r14, %cr3
        movq    %r8, %rsp
        movq    %r9, %rdi
        xorl    %ebp, %ebp
        jmpq    *%r15

# A fault, an NMI, or the trial giving up (vector 31). On the vCPU's park stack:
# vector, error, RIP, CS, RFLAGS, RSP, SS.
gate:
        pushq   %rax
        pushq   %rbx
        pushq   %rcx
        pushq   %rdx
        pushq   %r12
        pushq   %r13
        movq    %cr3, %rbx
        movq    park_base + {tables} + {t_cr3}(%rip), %rax
        movq    %rax, %cr3
        leaq    park_base + {control}(%rip), %r12
        xorl    %eax, %eax
        str     %ax
        movl    %eax, %edx
        subl    ${sel_tss}, %edx
        shrl    $4, %edx
        cmpl    {c_trial_vcpu}(%r12), %edx
        jne     not_trial
        shll    ${slot_shift}, %edx
        leaq    {c_slots}(%r12,%rdx), %r13
        cmpl    $2, 48(%rsp)
        je      nmi
        movl    ${verdict_pending}, %eax
        movl    ${verdict_fault}, %ecx
        lock cmpxchgl %ecx, {c_verdict}(%r12)
        je      1f
        cmpl    ${verdict_hung}, %eax
        jne     crash                   # committed already: nobody is left to go back to
0:      pause                           # the watcher was first: its NMI is on the way
        jmp     0b
1:      movq    48(%rsp), %rax
        movq    %rax, {c_vector}(%r12)
        movq    56(%rsp), %rax
        movq    %rax, {c_error}(%r12)
        movq    64(%rsp), %rax
        movq    %rax, {c_rip}(%r12)
        movq    88(%rsp), %rax
        movq    %rax, {c_fault_rsp}(%r12)
        movq    %cr2, %rax
        movq    %rax, {c_cr2}(%r12)
        jmp     take_back
nmi:
        cmpl    ${verdict_hung}, {c_verdict}(%r12)
        jne     gate_return             # not the watcher's: the trial goes on
        movl    ${taken_open}, %eax
        movl    ${taken_ours}, %ecx
        lock cmpxchgl %ecx, {c_taken}(%r12)
        je      2f
        cmpl    ${taken_ours}, %eax
        je      gate_return             # back already: a second NMI
1:      pause                           # too late: the INIT is on the way
        jmp     1b
2:      movq    64(%rsp), %rax
        movq    %rax, {c_rip}(%r12)
        jmp     take_back
not_trial:
        cmpl    $2, 48(%rsp)
        jne     crash                   # a parked vCPU runs nothing that can fault
gate_return:
        movq    %rbx, %cr3
        popq    %r13
        popq    %r12
        popq    %rdx
        popq    %rcx
        popq    %rbx
        popq    %rax
        addq    $16, %rsp
        iretq
crash:
        movl    $29, %eax               # sched_op
        movl    $2, %edi                # SCHEDOP_shutdown
        leaq    {c_crash_reason}(%r12), %rsi
        HYPERCALL
        jmp     crash

# From the SIPI page, after an INIT: RDI = control. Real mode is behind us; nothing else is known.
reset:
        movq    %rdi, %r12
        movl    {c_trial_vcpu}(%r12), %edx
        shll    ${slot_shift}, %edx
        leaq    {c_slots}(%r12,%rdx), %r13
        movq    {s_stack}(%r13), %rsp
        LOAD_TABLES

# The vCPU is ours again, in whatever state. Everything a trial can change is put back, then `try`
# returns to the old image. R12 = control, R13 = slot.
take_back:
        movl    ${taken_ours}, {c_taken}(%r12)
        movl    $0xc0000080, %ecx       # EFER
        movl    {c_efer}(%r12), %eax
        movl    {c_efer} + 4(%r12), %edx
        wrmsr
        movq    {c_cr4}(%r12), %rax
        movq    %rax, %cr4
        movq    {c_cr0}(%r12), %rax
        movq    %rax, %cr0
        movl    {c_xcr0}(%r12), %eax
        movl    {c_xcr0} + 4(%r12), %edx
        testl   %eax, %eax
        jz      1f
        xorl    %ecx, %ecx
        xsetbv
1:      movl    $0x277, %ecx            # IA32_PAT
        movl    {c_pat}(%r12), %eax
        movl    {c_pat} + 4(%r12), %edx
        wrmsr
        movl    $0xc0000100, %ecx       # FS.base
        movl    {c_fs}(%r12), %eax
        movl    {c_fs} + 4(%r12), %edx
        wrmsr
        movl    $0xc0000101, %ecx       # GS.base
        movl    {c_gs}(%r12), %eax
        movl    {c_gs} + 4(%r12), %edx
        wrmsr
        xorl    %eax, %eax              # no breakpoints
        movq    %rax, %dr7
        # No task priority: every interrupt comes. Written only if need be: a write while Xen has a
        # virtual interrupt pending aborts QEMU's emulated SVM (its lock is not held there).
        movq    %cr8, %rcx
        testq   %rcx, %rcx
        jz      1f
        movq    %rax, %cr8
1:
        # An NMI blocks further ones until an IRET.
        movl    %ss, %eax
        movq    %rsp, %rcx
        pushq   %rax
        pushq   %rcx
        pushq   $2
        movl    %cs, %eax
        pushq   %rax
        leaq    2f(%rip), %rax
        pushq   %rax
        iretq
2:      movq    {s_cr3}(%r13), %rax
        movq    %rax, %cr3
        movq    {s_rsp}(%r13), %rsp
        fninit
        ldmxcsr (%rsp)
        fldcw   4(%rsp)
        movl    {c_verdict}(%r12), %eax
        addq    $8, %rsp
        popq    %r15
        popq    %r14
        popq    %r13
        popq    %r12
        popq    %rbx
        popq    %rbp
        ret
