"""Studies of watched models of other libraries."""
