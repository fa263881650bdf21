"""The messaging kit against small services that are defined here: no word of the shop."""
