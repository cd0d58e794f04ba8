# Real-mode setup code of the Linux/x86 boot protocol (Documentation/arch/x86/boot.rst).
#
# On entry (16-bit): CS = setup segment + 0x20, IP = 0, DS = ES = SS = setup segment.
# Leaves in 32-bit protected mode at code32_start with ESI = boot_params, whose E820 table is
# filled. Everything is relative to the setup segment: the loader chooses where that is.
#
# The image builder fills in setup_sects, syssize and init_size.

.section .setup, "", @progbits
.code16
setup_base:
        .org 0x1f1
        .byte 0                         # setup_sects (builder)
        .word 1                         # root_flags: read-only
        .long 0                         # syssize (builder)
        .word 0                         # ram_size
        .word 0xffff                    # vid_mode: normal
        .word 0                         # root_dev
        .word 0xaa55                    # boot_flag
        .byte 0xeb, setup_code - . - 1  # jump, 2 bytes
        .ascii "HdrS"
        .word 0x020c                    # protocol 2.12
        .long 0                         # realmode_swtch
        .word 0                         # start_sys_seg
        .word 0                         # kernel_version
        .byte 0                         # type_of_loader
        .byte 0x01                      # loadflags: LOADED_HIGH
        .word 0                         # setup_move_size
        .long 0x100000                  # code32_start
        .long 0                         # ramdisk_image
        .long 0                         # ramdisk_size
        .long 0                         # bootsect_kludge
        .word 0                         # heap_end_ptr
        .byte 0                         # ext_loader_ver
        .byte 0                         # ext_loader_type
        .long 0                         # cmd_line_ptr
        .long 0x7fffffff                # initrd_addr_max
        .long 0x1000                    # kernel_alignment
        .byte 1                         # relocatable_kernel
        .byte 12                        # min_alignment: 4 KiB
        .word 0x0001                    # xloadflags: XLF_KERNEL_64
        .long 2047                      # cmdline_size
        .long 0                         # hardware_subarch
        .quad 0                         # hardware_subarch_data
        .long 0                         # payload_offset
        .long 0                         # payload_length
        .quad 0                         # setup_data
        .quad 0x100000                  # pref_address
        .long 0                         # init_size (builder)
        .long 0                         # handover_offset
header_end:

.set BOOT_PARAMS, 0x4000                # in the setup segment
.set E820_ENTRIES, BOOT_PARAMS + 0x1e8
.set E820_TABLE, BOOT_PARAMS + 0x2d0
.set E820_MAX, 128
.set HEADER, 0x1f1

setup_code:
        cli
        cld
        movw    %ds, %ax
        movw    %ax, %es
        movw    %ax, %ss
        movw    $(BOOT_PARAMS - 16), %sp

        # boot_params: zero, then the header as the loader left it.
        movw    $BOOT_PARAMS, %di
        movw    $1024, %cx
        xorl    %eax, %eax
        rep stosl
        movw    $HEADER, %si
        movw    $(BOOT_PARAMS + HEADER), %di
        movw    $(header_end - setup_base - HEADER), %cx
        rep movsb

        # INT 15h, E820: the memory map.
        movw    $E820_TABLE, %di
        xorl    %ebx, %ebx
e820_next:
        movl    $0xe820, %eax
        movl    $20, %ecx
        movl    $0x534d4150, %edx
        sti
        int     $0x15
        cli
        jc      e820_done
        cmpl    $0x534d4150, %eax
        jne     e820_done
        addw    $20, %di
        incb    E820_ENTRIES
        testl   %ebx, %ebx
        jz      e820_done
        cmpb    $E820_MAX, E820_ENTRIES
        jb      e820_next
e820_done:
        movw    $0x2401, %ax            # A20 on (most BIOSes have it on)
        int     $0x15
        cli

        # To 32-bit protected mode; the descriptors are those the protocol asks for.
        xorl    %ebx, %ebx
        movw    %ds, %bx
        shll    $4, %ebx                # EBX = base of the setup segment
        leal    BOOT_PARAMS(%ebx), %esi
        movl    BOOT_PARAMS + 0x214, %edx
        leal    (setup_gdt - setup_base)(%ebx), %eax
        movl    %eax, setup_gdtr - setup_base + 2
        lgdtl   setup_gdtr - setup_base
        movl    %cr0, %eax
        orb     $1, %al
        movl    %eax, %cr0
        leal    (setup_32 - setup_base)(%ebx), %eax
        pushl   $0x10
        pushl   %eax
        lretl

.code32
setup_32:
        movw    $0x18, %ax
        movw    %ax, %ds
        movw    %ax, %es
        movw    %ax, %fs
        movw    %ax, %gs
        movw    %ax, %ss
        xorl    %ebp, %ebp
        xorl    %edi, %edi
        xorl    %ebx, %ebx
        jmpl    *%edx

        .balign 8
setup_gdt:
        .quad 0
        .quad 0
        .quad 0x00cf9a000000ffff        # 0x10: flat code
        .quad 0x00cf92000000ffff        # 0x18: flat data
setup_gdtr:
        .word . - setup_gdt - 1
        .long 0
setup_end:
