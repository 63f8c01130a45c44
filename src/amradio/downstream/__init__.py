"""What a student is used for beyond its features: trained systems around it, each in a package."""
