//! `#[derive(segue::Plain)]`.
//!
//! The macro only looks at what the compiler can't be asked later: that the type is a struct with
//! `repr(C)` and without parameters. All else is left to the compiler, in constants of the code it
//! makes: each field's type is `Plain`, sizes of fields add up to the struct's (so there is no
//! padding), nothing has to be dropped.

use proc_macro::TokenStream;
use proc_macro2::TokenStream as Tokens;
use quote::quote;
use syn::spanned::Spanned as _;
use syn::{Data, DeriveInput, Error, Fields, Member, parse_macro_input};

/// Makes a struct one whose bytes may stay in place while the image is replaced.
///
/// The struct has to be `#[repr(C)]` (or `transparent`), without parameters and padding, and each
/// field of a type that is `Plain` itself: integers, floats, arrays of such, other structs.
#[proc_macro_derive(Plain)]
pub fn plain(input: TokenStream) -> TokenStream {
    let input = parse_macro_input!(input as DeriveInput);
    expand(&input)
        .unwrap_or_else(Error::into_compile_error)
        .into()
}

/// What `repr` says: the layout is set, and by nothing that leaves fields unaligned.
fn has_layout(input: &DeriveInput) -> Result<bool, Error> {
    let mut set = false;
    for attribute in input.attrs.iter().filter(|a| a.path().is_ident("repr")) {
        attribute.parse_nested_meta(|meta| {
            if meta.path.is_ident("packed") {
                return Err(meta.error("a packed struct is not Plain"));
            }
            set |= meta.path.is_ident("C") || meta.path.is_ident("transparent");
            if meta.input.peek(syn::token::Paren) {
                let content;
                syn::parenthesized!(content in meta.input);
                content.parse::<Tokens>()?;
            }
            Ok(())
        })?;
    }
    Ok(set)
}

fn expand(input: &DeriveInput) -> Result<Tokens, Error> {
    let name = &input.ident;
    let Data::Struct(data) = &input.data else {
        return Err(Error::new(
            name.span(),
            "only structs are Plain: not every bit pattern is an enum's or a union's",
        ));
    };
    if !has_layout(input)? {
        return Err(Error::new(
            name.span(),
            "a Plain struct needs #[repr(C)]: other images lay it out the same way",
        ));
    }
    if !input.generics.params.is_empty() {
        return Err(Error::new(
            input.generics.span(),
            "a Plain struct has no parameters: its layout would not be one",
        ));
    }
    if matches!(data.fields, Fields::Unit) || data.fields.is_empty() {
        return Err(Error::new(name.span(), "a Plain struct has fields"));
    }
    let types: Vec<_> = data.fields.iter().map(|field| &field.ty).collect();
    let members: Vec<Member> = data.fields.members().collect();
    let names = members.iter().map(|member| match member {
        Member::Named(name) => name.to_string(),
        Member::Unnamed(index) => index.index.to_string(),
    });
    let plain = quote!(::segue::preserved::Plain);
    Ok(quote! {
        const _: () = {
            assert!(
                0 #(+ ::core::mem::size_of::<#types>())* == ::core::mem::size_of::<#name>(),
                "a Plain struct has no padding: order its fields by size, or fill the gaps with fields"
            );
            assert!(!::core::mem::needs_drop::<#name>(), "a Plain struct is not dropped");
        };
        // SAFETY: fields are Plain and fill the struct, so every bit pattern is a value, without
        // padding, references and interior mutability; repr(C), so the layout is what LAYOUT says.
        #[automatically_derived]
        unsafe impl #plain for #name {
            const LAYOUT: u64 = ::segue::preserved::Layout::of_struct(
                ::core::mem::size_of::<#name>(),
                ::core::mem::align_of::<#name>(),
            )
            #(.field(
                #names,
                ::core::mem::offset_of!(#name, #members),
                <#types as #plain>::LAYOUT,
            ))*
            .hash();
        }
    })
}
