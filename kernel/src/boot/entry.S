# The image's entries. All are position-independent: the image may be at any 4 KiB-aligned
# address below 4 GiB here (the handover entry: anywhere).
#
#   offset 0x000  Linux boot protocol, 32 bit: ESI = boot_params, flat segments, paging off
#   offset 0x100  PVH, 32 bit: EBX = hvm_start_info, flat segments, paging off
#   offset 0x200  Linux boot protocol, 64 bit: RSI = boot_params, long mode, identity-mapped
#   handover      64 bit: see segue_handover_entry below
#
# The 32-bit part zeroes .bss, builds identity page tables for the low 4 GiB there, goes to long
# mode, applies the image's own relocations and calls Rust.

.section .boot, "ax", @progbits
.code32
.globl segue_linux_entry32
segue_linux_entry32:
        cli
        cld
        leal    {bp_scratch}(%esi), %esp  # boot_params.scratch: a stack of one word (boot.rst)
        addl    $4, %esp
        call    1f
1:      popl    %ebp
        subl    $(1b - segue_linux_entry32), %ebp
        movl    ${kind_linux}, %edi
        jmp     start32

.org 0x100
.globl segue_pvh_entry32
segue_pvh_entry32:
        cli
        cld
        # No stack is given; the start info's magic word serves for one, and is put back.
        movl    (%ebx), %edx
        leal    4(%ebx), %esp
        call    1f
1:      popl    %ebp
        subl    $(1b - segue_linux_entry32), %ebp
        movl    %edx, (%ebx)
        movl    %ebx, %esi
        movl    ${kind_pvh}, %edi
        jmp     start32

.org 0x200, 0x90
.code64
.globl segue_linux_entry64
segue_linux_entry64:
        # Down to 32 bit and through the one path above: below 4 GiB, as xloadflags says.
        cli
        cld
        leaq    segue_linux_entry32(%rip), %rbp
        leaq    segue_boot_stack_top(%rip), %rsp
        leaq    boot_gdt(%rip), %rax
        movq    %rax, boot_gdtr + 2(%rip)
        lgdt    boot_gdtr(%rip)
        pushq   $0x18
        leaq    down32(%rip), %rax
        pushq   %rax
        lretq
.code32
down32:
        movl    $0x10, %eax
        movl    %eax, %ds
        movl    %eax, %es
        movl    %eax, %ss
        movl    $0x11, %eax             # PE, ET: paging off
        movl    %eax, %cr0
        movl    $0xc0000080, %ecx
        rdmsr
        andl    $~0x500, %eax           # LME off
        wrmsr
        movl    ${kind_linux}, %edi
        jmp     start32

# EBP = image base, ESI = boot data, EDI = how we got here. No stack from here on.
start32:
        rdtsc
        movl    %eax, %ebx
        movl    %edx, %esp              # ESP:EBX = time stamp of the entry
        # .bss (holds the page tables and the boot stack)
        movl    %edi, %edx
        leal    (__bss_start - segue_linux_entry32)(%ebp), %edi
        leal    (__bss_end - segue_linux_entry32)(%ebp), %ecx
        subl    %edi, %ecx
        shrl    $2, %ecx
        xorl    %eax, %eax
        rep stosl
        movl    %ebx, (segue_entry_tsc - segue_linux_entry32)(%ebp)
        movl    %esp, (segue_entry_tsc - segue_linux_entry32 + 4)(%ebp)
        movl    %edx, (entry_kind - segue_linux_entry32)(%ebp)

        # PML4[0] -> PDPT; PDPT[0..4] -> four PDs; 2048 pages of 2 MiB, all writable
        leal    (segue_boot_tables - segue_linux_entry32)(%ebp), %ebx
        leal    0x1003(%ebx), %eax
        movl    %eax, (%ebx)
        leal    0x2003(%ebx), %eax
        movl    %eax, 0x1000(%ebx)
        addl    $0x1000, %eax
        movl    %eax, 0x1008(%ebx)
        addl    $0x1000, %eax
        movl    %eax, 0x1010(%ebx)
        addl    $0x1000, %eax
        movl    %eax, 0x1018(%ebx)
        leal    0x2000(%ebx), %edi
        movl    $0x83, %eax             # present, writable, 2 MiB
        movl    $2048, %ecx
2:      movl    %eax, (%edi)
        addl    $8, %edi
        addl    $0x200000, %eax
        decl    %ecx
        jnz     2b

        # To long mode: PAE, EFER.LME|NXE, CR0.PG|WP
        movl    ${cr4_boot}, %eax
        movl    %eax, %cr4
        movl    %ebx, %cr3
        movl    $0xc0000080, %ecx
        rdmsr
        orl     ${efer_boot}, %eax
        wrmsr
        movl    ${cr0_boot}, %eax
        movl    %eax, %cr0
        leal    (boot_gdt - segue_linux_entry32)(%ebp), %eax
        movl    %eax, (boot_gdtr - segue_linux_entry32 + 2)(%ebp)
        lgdtl   (boot_gdtr - segue_linux_entry32)(%ebp)
        leal    (segue_boot_stack_top - segue_linux_entry32)(%ebp), %esp
        pushl   $0x08
        leal    (start64 - segue_linux_entry32)(%ebp), %eax
        pushl   %eax
        lretl

        .balign 8
boot_gdt:
        .quad 0
        .quad 0x00af9a000000ffff        # 0x08: 64-bit code
        .quad 0x00cf92000000ffff        # 0x10: data
        .quad 0x00cf9a000000ffff        # 0x18: 32-bit code
boot_gdt_end:

.code64
start64:
        xorl    %eax, %eax
        movl    %eax, %ds
        movl    %eax, %es
        movl    %eax, %ss
        movl    %eax, %fs
        movl    %eax, %gs
        leaq    segue_boot_stack_top(%rip), %rsp
        # R_X86_64_RELATIVE: *(offset + delta) = addend + delta. The linker emits no other kind,
        # and `segue image` refuses an image with one.
        leaq    segue_linux_entry32(%rip), %rdx
        subq    ${link_base}, %rdx
        leaq    __rela_start(%rip), %rcx
        leaq    __rela_end(%rip), %rbx
3:      cmpq    %rbx, %rcx
        jae     4f
        movq    16(%rcx), %rax
        addq    %rdx, %rax
        movq    (%rcx), %rdi
        movq    %rax, (%rdi,%rdx)
        addq    $24, %rcx
        jmp     3b
4:      movl    entry_kind(%rip), %edi
        movl    %esi, %esi              # zero-extend
        xorl    %ebp, %ebp
        call    {first_boot}
        ud2

# From a running Segue image (the park pages jump here): 64 bit, on the trial's page tables, on a
# stack of this image's workspace, interrupts off; RDI = handover record. Relocated already.
.globl segue_handover_entry
segue_handover_entry:
        xorl    %ebp, %ebp
        call    {handover}
        ud2

# Not among the text: that stays as it is in the file, see image/origin.rs.
.section .data.boot, "aw", @progbits
        .balign 8
boot_gdtr:
        .word boot_gdt_end - boot_gdt - 1
        .long 0
        .long 0

.section .bss.boot, "aw", @nobits
        .balign 4096
.globl segue_boot_tables
segue_boot_tables:
        .skip 6 * 4096
        .skip {boot_stack_size}
segue_boot_stack_top:
.globl segue_entry_tsc
segue_entry_tsc:
        .skip 8
entry_kind:
        .skip 8

# ELF notes. Xen: the PVH entry, a physical address (fixed offset in .boot, so a constant here).
.section .note.Xen, "a", @note
        .balign 4
        .long 4, 4, 18                  # XEN_ELFNOTE_PHYS32_ENTRY
        .asciz "Xen"
        .long {link_base} + 0x100
