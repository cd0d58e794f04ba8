# Where a vCPU starts after INIT-SIPI: real mode, CS = page << 8, IP = 0. Copied to a page below
# 1 MiB. Goes to long mode on the page tables in the parameters and jumps to their entry, with RDI
# and RSP from there. Parameters at the page's end: see cpu/smp.rs, SipiParams.

.section .sipi, "a", @progbits
.code16
sipi_base:
        cli
        cld
        movw    %cs, %ax
        movw    %ax, %ds
        movw    %ax, %ss
        movw    ${params}, %sp
        xorl    %ebx, %ebx
        movw    %ax, %bx
        shll    $4, %ebx                # EBX = address of the page
        leal    (sipi_gdt - sipi_base)(%ebx), %eax
        movl    %eax, sipi_gdtr - sipi_base + 2
        lgdtl   sipi_gdtr - sipi_base
        movl    $0x11, %eax             # PE, ET
        movl    %eax, %cr0
        leal    (sipi_32 - sipi_base)(%ebx), %eax
        pushl   $0x18
        pushl   %eax
        lretl
.code32
sipi_32:
        movl    $0x10, %eax
        movl    %eax, %ds
        movl    %eax, %es
        movl    %eax, %ss
        leal    {params}(%ebx), %esp
        movl    ${cr4_boot}, %eax
        movl    %eax, %cr4
        movl    ({params} + {params_cr3})(%ebx), %eax
        movl    %eax, %cr3
        movl    $0xc0000080, %ecx
        rdmsr
        orl     ${efer_boot}, %eax
        wrmsr
        # The far return's words before paging: after it the page may be read-only.
        leal    (sipi_64 - sipi_base)(%ebx), %eax
        pushl   $0x08
        pushl   %eax
        movl    ${cr0_boot}, %eax
        movl    %eax, %cr0
        lretl
.code64
sipi_64:
        xorl    %eax, %eax
        movl    %eax, %ds
        movl    %eax, %es
        movl    %eax, %ss
        movl    %eax, %fs
        movl    %eax, %gs
        movl    %ebx, %ebx
        movq    ({params} + {params_stack})(%rbx), %rsp
        movq    ({params} + {params_arg})(%rbx), %rdi
        xorl    %ebp, %ebp
        jmpq    *({params} + {params_entry})(%rbx)

        .balign 8
sipi_gdt:
        .quad 0
        .quad 0x00af9b000000ffff        # 0x08: 64-bit code, accessed
        .quad 0x00cf93000000ffff        # 0x10: data, accessed
        .quad 0x00cf9b000000ffff        # 0x18: 32-bit code, accessed
sipi_gdtr:
        .word . - sipi_gdt - 1
        .long 0
